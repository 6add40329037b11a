"""Models that are there, as what a recipe trains: teachers, fine-tuning, baselines, adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..config.registry import STUDENTS
from ..core.preprocessing import Preprocessing
from ..core.tower import StudentSpec
from ..ecosystems import hub
from ..ecosystems.find import load_model, preprocessing_of
from ..ecosystems.processor import hugging_face_preprocessing
from ..ecosystems.timm import check_options, create_timm
from ..ecosystems.transformers import load_hugging_face, takes_any_size
from ..errors import UserError


@STUDENTS.register("timm")
@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """Any timm classifier, to train or fine-tune.

    model: a timm name, `hf-hub:ID` or a folder
    pretrained: from its weights
    kwargs: for timm.create_model, by its own names
    fresh_head: start from a new classifier, also where the loaded one has as many classes
    """

    as_it_is: ClassVar[bool] = True  # it takes no teacher's weights

    model: str
    pretrained: bool = False
    fresh_head: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.kwargs)

    def build(self, spec: StudentSpec) -> nn.Module:
        if not self.pretrained and Path(self.model).expanduser().is_dir():
            raise UserError(
                f"student.model is the folder {self.model!r}, whose weights are not read while pretrained is "
                "false; set student.pretrained to true, or write the architecture's name"
            )
        arguments = {"num_classes": spec.num_classes or 0, **self.kwargs}
        model: Any = create_timm(self.model, pretrained=self.pretrained, **arguments)
        if self.fresh_head:
            model.reset_classifier(spec.num_classes)
        return model

    def preprocessing(self) -> Preprocessing:
        """What its images look like, found out without its weights."""
        with torch.device("meta"):
            return preprocessing_of(create_timm(self.model, pretrained=False, **self.kwargs))


@STUDENTS.register("hf_vit")
@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel:
    """A Hugging Face ViT, DeiT or DINOv2 classifier to fine-tune; its head is made anew where the number of
    classes differs.

    model: an id or a folder
    revision: branch, tag or commit on the Hub
    """

    as_it_is: ClassVar[bool] = True  # it takes no teacher's weights

    model: str
    revision: str | None = None

    def build(self, spec: StudentSpec) -> nn.Module:
        model: Any = load_hugging_face(self.model, self.revision, num_classes=spec.num_classes)
        model.num_classes = spec.num_classes
        return model

    def preprocessing(self) -> Preprocessing:
        """What its images look like, found out without its weights."""
        from transformers import AutoConfig

        try:
            with hub.without_waiting():
                config = AutoConfig.from_pretrained(self.model, revision=self.revision)
        except Exception as error:
            said = hub.explain(error)
            raise UserError(f"Hugging Face model {self.model!r} could not be loaded: {said}") from error
        return hugging_face_preprocessing(config, self.model, self.revision, any_size=takes_any_size(config))


@STUDENTS.register("saved")
@dataclass(frozen=True, kw_only=True)
class Saved:
    """A student, or any model of a known library, as it was saved: to adapt it, or to train it on.

    model: a run, or a folder that a student was saved in
    """

    as_it_is: ClassVar[bool] = True  # it takes no teacher's weights

    model: str

    def build(self, spec: StudentSpec) -> nn.Module:
        """Raises UserError where none is there."""
        return load_model(self.model)

    def preprocessing(self) -> Any:
        """What it reads, as `preprocessing_of` says it."""
        return preprocessing_of(load_model(self.model))
