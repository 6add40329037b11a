"""open_clip's models as teachers: CLIP, SigLIP and what else has a ViT for its image tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..config.registry import TEACHERS
from ..core.preprocessing import Preprocessing
from ..ecosystems import open_clip as library
from ..ecosystems.sources import Source
from ..errors import UserError
from ..views.view import View
from .check import Original
from .of_module import OfModule
from .open_clip_view import blocks_of, open_clip_view, text_of
from .teacher import Teacher, refuse


@TEACHERS.register("open_clip")
@dataclass(frozen=True, kw_only=True)
class OpenClip(OfModule):
    """An open_clip model: an image tower, a text tower, and the scale (and bias) of their similarities. A
    text tower of another library is run, and never converted.

    model: `NAME/TAG` such as ViT-B-32/laion2b_s34b_b79k, a folder or hf-hub:ID with open_clip_config.json
    pretrained: with its weights; false for random ones, to try things out
    """

    model: str
    pretrained: bool = True

    def load(self) -> nn.Module:
        source = self._source()
        if self.pretrained and source.folder is None:
            _check_known(source)
        return library.create_open_clip(source, pretrained=self.pretrained)

    def empty(self) -> nn.Module:
        return library.create_open_clip(self._source(), pretrained=False, device="meta")

    def _source(self) -> Source:
        return library.source_of(self.model)

    @staticmethod
    def recognise(source: Source) -> OpenClip | None:
        return OpenClip(model=source.text) if library.recognise(source) else None

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        return library.holds(module) and hasattr(module, "encode_image")

    @staticmethod
    def describe(module: nn.Module, *, source: str) -> Teacher:
        model: Any = module
        origin = library.origin(model)
        view = open_clip_view(model)
        preprocessing = library.preprocessing(model)
        _check_size(view, preprocessing)
        return Teacher(
            view,
            source=source,
            preprocessing=preprocessing,
            num_params=sum(p.numel() for p in model.parameters()),
            licence=origin.licence,
            base_model=origin.base_model,
        )

    @staticmethod
    def original(module: nn.Module) -> Original:
        model: Any = module

        def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                "embedding.image": model.encode_image(inputs["image"], normalize=True),
                "embedding.text": model.encode_text(inputs["text"], normalize=True),
            }

        text = text_of(model)
        # its own text towers take texts of one length alone; those of another library tell their longest
        ours = type(text).__module__.startswith("open_clip.") and not hasattr(text, "config")
        words = {"words": text.context_length} if ours else {}
        return Original(model, outputs, blocks_of(model), **words)


def _check_known(source: Source) -> None:
    """Raises UserError for a model that the view cannot express, before its weights are fetched."""
    try:
        model = library.create_open_clip(source, pretrained=False, device="meta")
    except UserError:
        return  # what is wrong with it is said of the real one
    open_clip_view(model)


def _check_size(view: View, preprocessing: Preprocessing) -> None:
    """open_clip does not compare the size in vision_cfg with what the tower was made for."""
    tower = view.towers["image"]
    layout: Any = tower.layout
    patch = tower.embedding.weight.shape[-2:]
    size = preprocessing.input_size[1:]
    if tuple(side // each for side, each in zip(size, patch, strict=True)) != layout.grid:
        made = " x ".join(str(count * each) for count, each in zip(layout.grid, patch, strict=True))
        raise refuse(
            "image tower",
            f"it was made for pictures of {made}; write that as image_size of vision_cfg",
            image_size=" x ".join(map(str, size)),
        )
