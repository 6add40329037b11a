"""The teacher that a name or a module means."""

from __future__ import annotations

import difflib
from pathlib import Path

from torch import nn

from ..config.registry import TEACHERS
from ..ecosystems.folders import model_folder
from ..errors import UserError
from .teacher import Teacher


def adapt_teacher(module: nn.Module) -> Teacher:
    """The teacher in a module the user already holds, by the first registered adapter that knows its
    class."""
    for name in TEACHERS:
        adapter = TEACHERS[name]
        if hasattr(adapter, "accepts") and adapter.accepts(module):
            return adapter.adapt(module, source=type(module).__name__)
    raise UserError(
        f"no teacher adapter for {type(module).__module__}.{type(module).__qualname__}; "
        "known: timm VisionTransformer, transformers ViT/DeiTForImageClassification "
        "(docs/adding_a_part.md shows how to add one)"
    )


def load_teacher(source: str | Path) -> Teacher:
    """The teacher named by `source`: a run or model folder, a timm name, or a Hugging Face id.

    Raises UserError with what was tried.
    """
    for name in TEACHERS:
        part = TEACHERS[name]
        recognised = part.recognise(str(source)) if hasattr(part, "recognise") else None
        if recognised is not None:
            return recognised.build()
    if model_folder(source):
        raise UserError(
            f"teacher {str(source)!r}: its config.json names neither a timm `architecture` nor a known "
            "`model_type` (vit, deit)"
        )
    raise UserError(
        f"teacher {str(source)!r}: no such folder, timm model or Hugging Face id{_hint(str(source))}; "
        "write a folder that holds config.json, a timm name such as deit_small_patch16_224, or an id such as "
        "google/vit-base-patch16-224"
    )


def _hint(name: str) -> str:
    import timm

    close = difflib.get_close_matches(name, timm.list_models(["*vit*", "*deit*"]), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""
