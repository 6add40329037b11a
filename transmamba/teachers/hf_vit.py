"""Hugging Face ViT, DeiT and DINOv2 as teachers: classifiers, and backbones that teach features alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..config.registry import TEACHERS
from ..core.preprocessing import Preprocessing
from ..ecosystems import transformers as library
from ..ecosystems.origin import Origin, origin_by_name
from ..ecosystems.processor import hugging_face_preprocessing
from ..ecosystems.sources import Source
from ..ecosystems.transformers import empty_hugging_face, load_hugging_face
from .check import Original
from .hf_vit_view import VIEWS, backbone_of, has_head, hugging_face_view, layers_of
from .of_module import OfModule
from .teacher import Teacher


@TEACHERS.register("hf_vit")
@dataclass(frozen=True, kw_only=True)
class HuggingFaceVit(OfModule):
    """A Hugging Face ViT, DeiT or DINOv2. Without a trained classifier it teaches features alone. Pickled
    weights are refused.

    model: an id, or a folder with config.json and safetensors
    revision: branch, tag or commit on the Hub
    """

    model: str
    revision: str | None = None

    def described(self, module: nn.Module) -> Teacher:
        """With the processor and the licence of its folder or repository."""
        model: Any = module
        preprocessing = hugging_face_preprocessing(
            model.config, self.model, self.revision, any_size=library.takes_any_size(model.config)
        )
        return _teacher(model, self.model, preprocessing, origin_by_name(self.model, self.revision))

    def load(self) -> nn.Module:
        return load_hugging_face(self.model, self.revision)

    def empty(self) -> nn.Module:
        return empty_hugging_face(self.model, self.revision)

    @staticmethod
    def recognise(source: Source) -> HuggingFaceVit | None:
        known = library.recognise(source) and source.config["model_type"] in library.MODEL_TYPES
        return (
            HuggingFaceVit(model=str(source.folder or source.repo), revision=source.revision)
            if known
            else None
        )

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        return type(module).__name__ in VIEWS

    @staticmethod
    def describe(module: nn.Module, *, source: str) -> Teacher:
        model: Any = module
        preprocessing = hugging_face_preprocessing(
            model.config, library.folder_of(model), any_size=library.takes_any_size(model.config)
        )
        return _teacher(model, source, preprocessing, library.origin(model))

    @staticmethod
    def original(module: nn.Module) -> Original:
        model: Any = module

        def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            if has_head(model):
                return {"logits": model(pixel_values=inputs["image"]).logits}
            return {"end.image": backbone_of(model)(pixel_values=inputs["image"]).last_hidden_state}

        return Original(model, outputs, {"image": list(layers_of(model))})


def _teacher(model: Any, source: str, preprocessing: Preprocessing, origin: Origin) -> Teacher:
    view = hugging_face_view(model, preprocessing.input_size[1:])
    return Teacher(
        view,
        source=source,
        preprocessing=preprocessing,
        num_params=sum(p.numel() for p in model.parameters()),
        class_names=library.class_names(model.config) if view.heads else None,
        licence=origin.licence,
        base_model=origin.base_model,
    )
