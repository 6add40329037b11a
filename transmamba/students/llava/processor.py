"""What makes inputs of pictures and words for a saved LLaVA: transformers' LlavaProcessor."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from ...core.preprocessing import of_pictures
from ...ecosystems.processor import image_processor

if TYPE_CHECKING:
    from .model import LlavaStudent


def processor_of(student: LlavaStudent) -> Any:
    """The teacher's own where it has one, told of the student's tokens; None without a tokenizer."""
    from transformers import LlavaProcessor

    words = student.beside.tokenizer
    if words is None or student.reads is None:
        return None
    words = copy.deepcopy(words)
    # as where it is created: what is set later alone is not saved
    words.padding_side = words.init_kwargs["padding_side"] = "left"
    if words.pad_token is None:  # rows of several lengths are padded, and a mask says so
        words.pad_token = words.eos_token
    layout, theirs = student.vision_tower.layout, student.beside.processor
    full = student.config.vision_feature_select_strategy == "full"
    return LlavaProcessor(
        image_processor(of_pictures(student.reads)) if theirs is None else theirs.image_processor,
        words,
        patch_size=_patch(student),
        vision_feature_select_strategy=student.config.vision_feature_select_strategy,
        num_additional_image_tokens=student.tokens - layout.num_patches + (0 if full else 1),
        image_token=words.convert_ids_to_tokens(student.config.image_token_id),
        chat_template=getattr(theirs, "chat_template", None) or words.chat_template,
    )


def _patch(student: LlavaStudent) -> int:
    """Pixels a side of a picture's patch."""
    height = of_pictures(student.reads).input_size[1]
    return int(height // student.vision_tower.layout.rows)
