"""What makes inputs of pictures and words for a saved LLaVA: transformers' LlavaProcessor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.preprocessing import of_pictures
from ...ecosystems.processor import image_processor
from ...ecosystems.vision_language import llava_processor

if TYPE_CHECKING:
    from .model import LlavaStudent


def processor_of(student: LlavaStudent) -> Any:
    """The teacher's own where it has one, told of the student's tokens; None without a tokenizer."""
    words = student.beside.tokenizer
    if words is None or student.reads is None:
        return None
    layout, theirs = student.vision_tower.layout, student.beside.processor
    strategy = student.config.vision_feature_select_strategy
    return llava_processor(
        words,
        image_processor(of_pictures(student.reads)) if theirs is None else theirs.image_processor,
        student.config.image_token_id,
        patch=_patch(student),
        strategy=strategy,
        beyond_patches=student.tokens - layout.num_patches + (strategy != "full"),
        template=getattr(theirs, "chat_template", None),
    )


def _patch(student: LlavaStudent) -> int:
    """Pixels a side of a picture's patch."""
    height = of_pictures(student.reads).input_size[1]
    return int(height // student.vision_tower.layout.rows)
