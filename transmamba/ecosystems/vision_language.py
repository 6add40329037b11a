"""Vision-language models of transformers: how one reads pictures and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..core.card import Card
from ..core.preprocessing import PicturesAndText, Preprocessing
from ..errors import UserError
from .decoders import load_decoder
from .language_tokenizer import language_preprocessing
from .origin import Origin
from .processor import hugging_face_preprocessing
from .sources import Source

LLAVA = "llava"
# of which towers the first token is no patch
_CLASS_TOKEN = frozenset(("clip_vision_model",))


def llava_preprocessing(
    config: Any, name: str, revision: str | None = None
) -> Preprocessing | PicturesAndText:
    """Of a LLaVA, with the tokenizer beside it, unread until it is used; what its pictures look like alone
    where there is none.

    config: the model's; name: a folder, an id, or nothing
    """
    pictures = hugging_face_preprocessing(config.vision_config, name, revision)
    found = language_preprocessing(name, config.text_config, revision) if _is_a_place(name) else None
    if found is None:
        return pictures
    return PicturesAndText(pictures, found.text, int(config.image_token_id), places_of(config))


def places_of(config: Any) -> int:
    """How many tokens of a LLaVA's text a picture takes: its patches, and with the strategy `full` the
    tower's class token where it has one. Raises UserError where `default` would leave out a patch, for the
    tower has no class token."""
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    patches, special = (vision.image_size // vision.patch_size) ** 2, vision.model_type in _CLASS_TOKEN
    if strategy == "full":
        return patches + special
    if not special:
        raise UserError(
            f"vision_feature_select_strategy {strategy}: it leaves out the first token, which is a patch of "
            f"the tower {vision.model_type}; write full in the model's config.json"
        )
    return int(patches)


def load_llava(source: Source) -> nn.Module:
    """A LLaVA with its weights, in its own precision. Raises UserError in one line."""
    from transformers import AutoModelForImageTextToText

    return load_decoder(source, AutoModelForImageTextToText)


_SNIPPET = """{first}from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("OWNER/NAME"{also})
model = AutoModelForImageTextToText.from_pretrained("OWNER/NAME"{also}).eval()
asked = [{{"type": "image", "path": "PICTURE.png"}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": asked}}], add_generation_prompt=True, tokenize=True, return_dict=True,
    return_tensors="pt",
)
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=20), skip_special_tokens=True)[0])
"""


def llava_card(config: Any, origin: Origin) -> Card:
    """Of a LLaVA of transformers: one with an image tower of ours needs us, one with code of its own says
    so."""
    ours = str(getattr(config.vision_config, "architecture", "")).startswith("llava_")
    return Card(
        library="transformers",
        pipeline_tag="image-text-to-text",
        snippet=_SNIPPET.format(
            first="import transmamba  # its image tower\n" if ours else "",
            also=", trust_remote_code=True" if hasattr(config, "auto_map") else "",
        ),
        licence=origin.licence,
        base_model=origin.base_model,
    )


def _is_a_place(name: str) -> bool:
    return bool(name) and (Path(name).expanduser().is_dir() or "/" in name)
