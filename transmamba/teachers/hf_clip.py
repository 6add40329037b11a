"""Hugging Face CLIP and SigLIP as teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..config.registry import TEACHERS
from ..core.preprocessing import Preprocessing
from ..ecosystems import transformers as library
from ..ecosystems.open_clip_tokenizer import OpenClipTokenizer
from ..ecosystems.origin import Origin, origin_by_name
from ..ecosystems.processor import hugging_face_preprocessing
from ..ecosystems.sources import Source
from .check import Original
from .hf_clip_view import KINDS, blocks_of, dual_encoder_view
from .of_module import OfModule
from .teacher import Teacher

# a folder's tokenizer is in one of them
_TOKENIZERS = ("tokenizer.json", "vocab.json", "spiece.model")


@TEACHERS.register("hf_clip")
@dataclass(frozen=True, kw_only=True)
class HuggingFaceClip(OfModule):
    """A Hugging Face CLIP or SigLIP: both towers, and the scale (and bias) of their similarities. Pickled
    weights are refused.

    model: an id, or a folder with config.json and safetensors
    revision: branch, tag or commit on the Hub
    """

    model: str
    revision: str | None = None

    def described(self, module: nn.Module) -> Teacher:
        """With the processor and the licence of its folder or repository."""
        model: Any = module
        revision = self.revision or getattr(model.config, "_commit_hash", None)
        preprocessing = hugging_face_preprocessing(library.image_config(model.config), self.model, revision)
        looks = _reading(model, preprocessing, self.model, revision)
        return _teacher(model, self.model, looks, origin_by_name(self.model, self.revision))

    def load(self) -> nn.Module:
        return library.load_hugging_face(self.model, self.revision)

    def empty(self) -> nn.Module:
        return library.empty_hugging_face(self.model, self.revision)

    @staticmethod
    def recognise(source: Source) -> HuggingFaceClip | None:
        known = library.recognise(source) and source.config["model_type"] in library.DUAL_ENCODERS
        named = str(source.folder or source.repo)
        return HuggingFaceClip(model=named, revision=source.revision) if known else None

    @staticmethod
    def accepts(module: nn.Module) -> bool:
        return type(module).__name__ in KINDS and type(module).__module__.startswith("transformers.")

    @staticmethod
    def describe(module: nn.Module, *, source: str) -> Teacher:
        model: Any = module
        folder = library.folder_of(model)
        looks = hugging_face_preprocessing(library.image_config(model.config), folder)
        return _teacher(model, source, _reading(model, looks, folder), library.origin(model))

    @staticmethod
    def original(module: nn.Module) -> Original:
        model: Any = module

        def outputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            image = model.get_image_features(pixel_values=inputs["image"])
            text = model.get_text_features(input_ids=inputs["text"])
            return {
                f"embedding.{name}": F.normalize(getattr(found, "pooler_output", found), dim=-1)
                for name, found in (("image", image), ("text", text))
            }

        words = model.config.text_config.max_position_embeddings
        return Original(model, outputs, blocks_of(model), words)


def _reading(
    model: Any, preprocessing: Preprocessing, name: str, revision: str | None = None
) -> Preprocessing:
    """With its own tokenizer, of the folder or the id that it is from; where nothing says from where, or the
    folder holds none, without one."""
    folder = Path(name).expanduser()
    if not name or (folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZERS)):
        return preprocessing
    context = model.config.text_config.max_position_embeddings
    at = None if folder.is_dir() else revision
    return replace(preprocessing, text=OpenClipTokenizer(context, name, revision=at))


def _teacher(model: Any, source: str, preprocessing: Preprocessing, origin: Origin) -> Teacher:
    return Teacher(
        dual_encoder_view(model),
        source=source,
        preprocessing=preprocessing,
        num_params=sum(p.numel() for p in model.parameters()),
        licence=origin.licence,
        base_model=origin.base_model,
    )
