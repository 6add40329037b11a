"""A teacher: a canonical view that only looks, with what its images must look like.

It is deliberately no `nn.Module`: nothing can register it, so it is never in DDP, in an optimizer, in a
checkpoint or in train mode (the second invariant, kept by construction).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.registry import TEACHERS
from ..core.output import Capture, Output, TokenLayout
from ..core.preprocessing import Preprocessing
from ..ecosystems.folders import model_folder
from ..errors import UserError
from ..views.folding import fold
from ..views.view import View, map_tensors


class Teacher:
    """Frozen; call it with images (B, C, H, W) for an `Output`."""

    def __init__(self, view: View, *, source: str, preprocessing: Preprocessing, num_params: int) -> None:
        self.view: View = map_tensors(view, lambda tensor: tensor.detach())
        self.source = source
        self.preprocessing = preprocessing
        self.num_params = num_params
        self.folded = False

    @property
    def layout(self) -> TokenLayout:
        return self.view.layout

    @property
    def num_blocks(self) -> int:
        return len(self.view.blocks)

    @property
    def num_classes(self) -> int:
        return self.view.num_classes

    def to(self, device: torch.device | str) -> Teacher:
        self.view = map_tensors(self.view, lambda tensor: tensor.to(device))
        return self

    def fold(self) -> None:
        """Fold LayerScale and the LayerNorms into the linears: the same logits, but a centred residual stream
        as an RMSNorm student needs it, here and wherever the student is compared. Once is enough."""
        if not self.folded:
            self.view = fold(self.view)
            self.folded = True

    @torch.no_grad()
    def __call__(self, images: Tensor, capture: Capture | None = None) -> Output:
        if images.device != self.view.embedding.weight.device:
            self.to(images.device)  # it follows its images: no module moves it along
        return self.view.run(images, capture)


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


def refuse(what: str, why: str, **values: Any) -> UserError:
    """The error for a block that the canonical view cannot express: refused by name, never approximated."""
    shown = "".join(f" ({key}={value})" for key, value in values.items())
    return UserError(f"teacher {what}{shown} cannot be expressed: {why}")
