"""Vision-language models of transformers: how one reads pictures and texts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from ..core.card import Card
from ..core.preprocessing import PicturesAndText, Preprocessing
from ..errors import UserError
from .chat_parts import in_parts
from .decoders import load_decoder
from .fewer_tokens import tokens_told
from .language_tokenizer import language_preprocessing
from .origin import Origin
from .processor import hugging_face_preprocessing
from .sources import Source
from .texts import versions_of

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
    """How many tokens of a LLaVA's text a picture takes: as many as we have told it (`fewer_tokens`), else
    its patches, and with the strategy `full` the tower's class token where it has one. Raises UserError where
    `default` would leave out a patch, for the tower has no class token."""
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    patches, special = (vision.image_size // vision.patch_size) ** 2, vision.model_type in _CLASS_TOKEN
    if (told := tokens_told(config)) is not None:
        return told
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


_LOADED = """{first}from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("OWNER/NAME"{also})
model = AutoModelForImageTextToText.from_pretrained("OWNER/NAME"{also}).eval()
"""
_CHAT = """asked = [{{"type": "image", "path": "PICTURE.png"}}, {{"type": "text", "text": "What is this?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": asked}}], add_generation_prompt=True, tokenize=True, return_dict=True,
    return_tensors="pt",
)
"""
# of a tokenizer without a chat template: as the task `questions` asks then
_PLAIN = """from PIL import Image

inputs = processor(
    images=Image.open("PICTURE.png"), text="USER: <image>\\nWhat is this? ASSISTANT:", return_tensors="pt"
)
inputs.pop("token_type_ids", None)
"""
_SAID = """written = model.generate(**inputs, max_new_tokens=20)
print(processor.batch_decode(written, skip_special_tokens=True)[0])
"""


def llava_card(config: Any, origin: Origin, chats: bool = True) -> Card:
    """Of a LLaVA of transformers: one with an image tower of ours needs us, one with code of its own says so.

    chats: whether its tokenizer has a chat template
    """
    ours = str(getattr(config.vision_config, "architecture", "")).startswith("llava_")
    since = "" if hasattr(config, "auto_map") else versions_of(config.text_config)
    return Card(
        library="transformers",
        pipeline_tag="image-text-to-text",
        snippet=(_LOADED + (_CHAT if chats else _PLAIN) + _SAID).format(
            first="import transmamba  # its image tower\n" if ours else since,
            also=", trust_remote_code=True" if hasattr(config, "auto_map") else "",
        ),
        licence=origin.licence,
        base_model=origin.base_model,
    )


def _is_a_place(name: str) -> bool:
    return bool(name) and (Path(name).expanduser().is_dir() or "/" in name)


def llava_processor(
    words: Any,
    pictures: Any,
    image_token: int,
    *,
    patch: int,
    strategy: str,
    beyond_patches: int,
    template: str | None = None,
) -> Any:
    """What makes inputs of pictures and words for a LLaVA, as AutoProcessor loads it where it is saved.

    words:       its tokenizer of transformers, which stays as it is
    pictures:    its image processor of transformers
    image_token: what stands for a picture in a text
    patch:       pixels a side of a patch; strategy: which of the tower's tokens are read (default, full)
    beyond_patches: tokens of the tower that are no patches
    template:    a chat template in place of the tokenizer's
    """
    from transformers import LlavaProcessor

    words = copy.deepcopy(words)
    # as where it is created: what is set later alone is not saved, and padding behind a prompt would be read
    words.padding_side = words.init_kwargs["padding_side"] = "left"
    if words.pad_token is None:  # rows of several lengths are padded, and a mask says so
        words.pad_token = words.eos_token
    mark = words.convert_ids_to_tokens(image_token)
    return LlavaProcessor(
        pictures,
        words,
        patch_size=patch,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=beyond_patches,
        image_token=mark,
        chat_template=in_parts(template or words.chat_template, mark),
    )
