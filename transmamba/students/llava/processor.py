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
    theirs, strategy = student.beside.processor, student.config.vision_feature_select_strategy
    height, rows = of_pictures(student.reads).input_size[1], student.vision_tower.layout.rows
    # it counts a picture's patches: of means all of it is one patch, and the rest come to it
    patch = height // rows if student.means is None else height
    counted = student.vision_tower.layout.num_patches if student.means is None else 1
    return llava_processor(
        words,
        image_processor(of_pictures(student.reads)) if theirs is None else theirs.image_processor,
        student.config.image_token_id,
        patch=patch,
        strategy=strategy,
        beyond_patches=student.tokens - counted + (strategy != "full"),
        template=getattr(theirs, "chat_template", None),
    )
