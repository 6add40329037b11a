"""Matrices of decays between tokens, both ways, made stably; the backward needs nothing but the matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..torch_ops import Operator, Outputs, nothing

# exp2 is several times faster than exp where MKL has no fast path.
LOG2_E = math.log2(math.e)


def two_way_decay(ahead: Tensor, back: Tensor, ids: Tensor | None, dtype: torch.dtype) -> Tensor:
    """exp(F_t - F_s) for s <= t and exp(R_t - R_s) for s >= t. F, R: (..., L); the result: (..., L, L),
    diagonal 1.

    F_t sums the log decays of the forward direction up to t, R_t those of the backward direction from t on.
    ids (..., L), broadcast: 0 between tokens that differ in it.
    """
    return _TWO_WAY(ahead, back, ids, dtype)[0]


def _differ(ids: Tensor) -> Tensor:
    return ids.unsqueeze(-1) != ids.unsqueeze(-2)


def _forward(ahead: Tensor, back: Tensor, ids: Tensor | None, dtype: torch.dtype) -> Outputs:
    ahead, back = ahead * LOG2_E, back * LOG2_E
    shape = (*ahead.shape, ahead.shape[-1])
    exponent, other = (torch.empty(shape, dtype=dtype, device=ahead.device) for _ in range(2))
    torch.sub(ahead.unsqueeze(-1), ahead.unsqueeze(-2), out=exponent)
    torch.sub(back.unsqueeze(-1), back.unsqueeze(-2), out=other)
    exponent = exponent.tril_().add_(other.triu_())
    if ids is not None:
        exponent = exponent.masked_fill_(_differ(ids), float("-inf"))
    return exponent.exp2_(), nothing(ahead)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    (grad,), (ahead, back, _), (decay, _) = grads, tensors, saved
    product = _off_diagonal(grad * decay)
    rows, columns = product.sum(-1), product.sum(-2)
    product = product.tril_()
    lower_rows, lower_columns = product.sum(-1), product.sum(-2)
    grad_ahead = lower_rows - lower_columns
    grad_back = (rows - lower_rows) - (columns - lower_columns)
    return grad_ahead.to(ahead.dtype), grad_back.to(back.dtype), nothing(grad)


def _off_diagonal(product: Tensor) -> Tensor:
    """The diagonal is constant; its large entries would cancel between the sums, but not exactly."""
    product.diagonal(dim1=-2, dim2=-1).zero_()
    return product


def _square(total: Tensor, dtype: torch.dtype) -> Tensor:
    return total.new_empty((*total.shape, total.shape[-1]), dtype=dtype)


_TWO_WAY = Operator(
    "two_way_decay",
    "Tensor ahead, Tensor back, Tensor? ids, ScalarType dtype",
    1,
    _forward,
    _backward,
    lambda ahead, back, ids, dtype: (_square(ahead, dtype), nothing(ahead)),
    1,
    saves_outputs=True,
)
