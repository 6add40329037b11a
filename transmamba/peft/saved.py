"""What a folder of an adapter holds, looked at before a model is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..ecosystems.damaged import damage
from ..errors import UserError

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Saved:
    """Of one tensor. floats: of numbers that can be trained; finite: all of them; span: the least and the
    largest of whole numbers"""

    shape: tuple[int, ...]
    floats: bool
    finite: bool = True
    span: tuple[int, int] | None = None


def saved_of(tensor: Tensor) -> Saved:
    floats = tensor.is_floating_point() and tensor.element_size() > 1
    finite = bool(torch.isfinite(tensor).all()) if floats else True
    whole = not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() > 0
    span = (int(tensor.min()), int(tensor.max())) if whole else None
    return Saved(tuple(tensor.shape), floats, finite, span)


def saved_tensors(folder: Path) -> Mapping[str, Saved] | None:
    """Of a folder's adapter, by name; None where there is none of safetensors. UserError where it is
    damaged."""
    file = folder / WEIGHTS
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as tensors:
            return {name: saved_of(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        said = damage(file) or f"{file} is damaged ({error}); take it from where it was saved again"
        raise UserError(said) from None


def is_empty(folder: Path) -> bool:
    """Whether a folder here has no tensors of an adapter."""
    return folder.is_dir() and not any((folder / name).is_file() for name in (WEIGHTS, "adapter_model.bin"))


def refuse_empty(folder: Path) -> None:
    """UserError: its adapter is to be loaded."""
    raise UserError(f"{folder} has no {WEIGHTS}; take it from where the adapter was saved again")
