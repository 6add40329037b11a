"""Any timm classifier as the model that a recipe trains: teachers, fine-tuning, baselines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..config.registry import STUDENTS
from ..errors import UserError
from ..views.view import View


@STUDENTS.register("timm")
@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """Any timm classifier, to train or fine-tune.

    model: a timm name, `hf-hub:ID` or a folder
    pretrained: from its weights
    kwargs: for timm.create_model, by its own names
    fresh_head: start from a new classifier, also where the loaded one has as many classes
    """

    model: str
    pretrained: bool = False
    fresh_head: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(
        self, *, num_classes: int, input_size: tuple[int, int, int] | None = None, view: View | None = None
    ) -> nn.Module:
        from ..teachers.timm_vit import create_timm

        if not self.pretrained and Path(self.model).expanduser().is_dir():
            raise UserError(
                f"student.model is the folder {self.model!r}, whose weights are not read while pretrained is "
                "false; set student.pretrained to true, or write the architecture's name"
            )
        model: Any = create_timm(
            self.model, pretrained=self.pretrained, num_classes=num_classes, **self.kwargs
        )
        if self.fresh_head:
            model.reset_classifier(num_classes)
        return model
