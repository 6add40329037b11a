"""A Hugging Face ViT or DeiT as the model that a recipe fine-tunes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config.registry import STUDENTS
from ..views.view import View


@STUDENTS.register("hf_vit")
@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel:
    """A Hugging Face ViT or DeiT classifier to fine-tune; its head is made anew where the number of classes
    differs.

    model: an id or a folder
    revision: branch, tag or commit on the Hub
    """

    model: str
    revision: str | None = None

    def build(
        self, *, num_classes: int, input_size: tuple[int, int, int] | None = None, view: View | None = None
    ) -> nn.Module:
        from ..teachers.hf_vit import load_hugging_face

        model: Any = load_hugging_face(self.model, self.revision, num_classes=num_classes)
        model.num_classes = num_classes
        return model
