"""Checks of arguments with one-line messages: which argument, what it is, what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def expect(name: str, tensor: Tensor | None, form: str, *shape: int) -> None:
    """Raises ValueError unless `tensor` is None or has `shape`; `form` spells it in letters, `(B, L, D)`."""
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {form} = {shape}")


def expect_rank(name: str, tensor: Tensor, form: str) -> None:
    """Raises ValueError unless `tensor` has as many dimensions as `form`, `(B, L, D)`, has letters."""
    if tensor.dim() != form.count(",") + 1:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {form}")


def expect_groups(name: str, groups: int, channels: int, what: str) -> None:
    """Raises ValueError unless the number of groups of `name` divides the number of channels or heads."""
    if groups < 1 or channels % groups:
        raise ValueError(f"{name}: {groups} groups do not divide {channels} {what}; expected a divisor")


def expect_divisor(name: str, size: int, whole: int) -> None:
    """Raises ValueError unless a size divides a whole; of an empty whole it is 0."""
    if whole % size if size > 0 else whole:
        raise ValueError(f"{name}: {size}, expected a divisor of {whole}")


def expect_floating(suffix: str = "", **tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors are floating point and lie where the first one lies.

    `suffix` goes behind the names in messages.
    """
    first = ""
    device = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ValueError(f"{name}{suffix}: dtype {tensor.dtype}, expected a real floating-point type")
        if device is None:
            first, device = name, tensor.device
        elif tensor.device != device:
            raise ValueError(
                f"{name}{suffix}: on {tensor.device}, expected {device}, where {first}{suffix} is"
            )


def expect_dtype_of(other: str, like: Tensor, **tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors have the dtype of `like`, which is called `other`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype != like.dtype:
            raise ValueError(f"{name}: dtype {tensor.dtype}, expected {like.dtype}, as {other} has")


def expect_integers(device: torch.device, **tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors hold integers and lie on `device`."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype not in INTEGERS:
            raise ValueError(f"{name}: dtype {tensor.dtype}, expected an integer type")
        if tensor.device != device:
            raise ValueError(f"{name}: on {tensor.device}, expected {device}, where the other tensors are")
