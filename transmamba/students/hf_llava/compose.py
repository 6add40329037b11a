"""A new LLaVA out of an image tower and a language model that were trained apart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ...core.preprocessing import PicturesAndText, Preprocessing, of_pictures
from ...ecosystems import decoders
from ...ecosystems.generation import never_writing
from ...ecosystems.language_tokenizer import HuggingFaceTokenizer
from ...ecosystems.origin import origin_of
from ...ecosystems.processor import hugging_face_preprocessing
from ...ecosystems.sources import Source, read_source
from ...ecosystems.vision_language import places_of
from ...errors import UserError
from .model import LlavaModel
from .tower import fill, vision_tower

if TYPE_CHECKING:
    from .names import HuggingFaceLlava

# tables of words are as fast where their rows are a multiple of it
_ROWS = 64


def compose(config: HuggingFaceLlava) -> LlavaModel:
    """The tower but for its last block, a new connector, the whole decoder: in float32. Raises UserError for
    parts that a LLaVA cannot be made of."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    source = _decoder(config)
    words: Any = decoders.load_decoder(source)
    tokenizer, place = _tokenizer(config, source)
    table = words.get_input_embeddings().weight
    if place >= len(table):
        with decoders.explained(
            source.text, tried="made larger"
        ):  # how new words begin is said at length there
            words.resize_token_embeddings(place + 1, pad_to_multiple_of=_ROWS, mean_resizing=True)
    vision, tensors, pictures = _tower(config)
    said = words.config.to_dict()
    said.pop("quantization_config", None)  # of a GGUF, whose numbers are plain ones by now
    whole = LlavaConfig(
        vision_config=vision,
        text_config={**said, "dtype": "float32"},
        image_token_index=place,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default" if vision.model_type == "clip_vision_model" else "full",
        tie_word_embeddings=words.config.tie_word_embeddings,
    )
    model: Any = LlavaForConditionalGeneration(whole)
    if tensors is not None:
        fill(model.model.vision_tower, tensors)
    model.model.language_model.load_state_dict(words.base_model.state_dict(), strict=True)
    model.lm_head.load_state_dict(words.get_output_embeddings().state_dict(), strict=True)
    if words.generation_config is not None:
        model.generation_config = words.generation_config
    never_writing(model, place)
    reads = PicturesAndText(pictures, tokenizer, place, places_of(whole))
    return LlavaModel(model, tokenizer.library, reads, origin_of(source))


def reads(config: HuggingFaceLlava) -> PicturesAndText:
    """How a LLaVA of these parts reads pictures and texts, without the weights of either."""
    from transformers import LlavaConfig

    source = _decoder(config)
    tokenizer, place = _tokenizer(config, source)
    vision, _, pictures = _tower(config, outline=True)
    strategy = "default" if vision.model_type == "clip_vision_model" else "full"
    whole = LlavaConfig(vision_config=vision, vision_feature_select_strategy=strategy)
    return PicturesAndText(pictures, tokenizer, place, places_of(whole))


def _decoder(config: HuggingFaceLlava) -> Source:
    assert config.decoder is not None, "seen when the recipe was read"
    source = read_source(config.decoder)
    if not decoders.is_decoder(source):
        raise UserError(
            f"student.decoder is {config.decoder!r}, which is no causal language model of transformers"
        )
    return source


def _tokenizer(config: HuggingFaceLlava, source: Source) -> tuple[HuggingFaceTokenizer, int]:
    """(The decoder's tokenizer with a word for pictures, that word's number)."""
    context = getattr(decoders.read_config(source), "max_position_embeddings", None)
    name = str(source.file or source.folder or source.repo)
    made = HuggingFaceTokenizer(name, context, source.revision, added=(config.image_token,))
    numbers = made.encode([config.image_token])[0]
    if len(numbers) != 1:
        raise UserError(f"student.image_token is {config.image_token!r}, which is {len(numbers)} words here")
    return made, numbers[0]


def _tower(
    config: HuggingFaceLlava, outline: bool = False
) -> tuple[Any, dict[str, torch.Tensor] | None, Preprocessing]:
    """(transformers' configuration, its weights or None where they are drawn, how its pictures look)

    outline: whether its weights are not wanted, and not read where its kind can be had without
    """
    if config.tower is None:
        from transformers import CLIPVisionConfig

        vision = CLIPVisionConfig(**config.vision)
        return vision, None, hugging_face_preprocessing(vision, "")
    asked = config.tower
    teacher = asked.outline() if outline and hasattr(asked, "outline") else asked.build()
    if not isinstance(teacher.preprocessing, Preprocessing | PicturesAndText):
        raise UserError(f"student.tower is {teacher.source!r}, which reads no pictures")
    vision, tensors = vision_tower(teacher.view, f"student.tower {teacher.source!r}")
    return vision, tensors, replace(of_pictures(teacher.preprocessing), text=None)
