"""Shape checks with one-line messages: which argument, the shape it has, the shape expected."""

from __future__ import annotations

from torch import Tensor


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
