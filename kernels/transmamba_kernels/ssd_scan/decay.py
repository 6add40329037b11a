"""Matrices of decays between tokens, made stably; the backward needs nothing but the matrix."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# exp2 is several times faster than exp where MKL has no fast path.
LOG2_E = math.log2(math.e)


class CausalDecay(torch.autograd.Function):
    """exp(F_t - F_s) for s <= t, else 0. F: (..., Q), sums of log decays; the result: (..., Q, Q).

    Entries above the diagonal, which could overflow, are put out before the exponential.
    """

    @staticmethod
    def forward(ctx: Any, total: Tensor) -> Tensor:
        length, total = total.shape[-1], total * LOG2_E
        exponent = total.unsqueeze(-1) - total.unsqueeze(-2)
        above = torch.ones(length, length, dtype=torch.bool, device=total.device).triu_(1)
        decay = exponent.masked_fill_(above, float("-inf")).exp2_()
        ctx.save_for_backward(decay)
        return decay

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (decay,) = ctx.saved_tensors
        product = _off_diagonal(grad * decay)
        return product.sum(-1) - product.sum(-2)


class TwoWayDecay(torch.autograd.Function):
    """exp(F_t - F_s) for s <= t and exp(R_t - R_s) for s >= t. F, R: (..., L); the result: (..., L, L),
    diagonal 1.

    F_t sums the log decays of the forward direction up to t, R_t those of the backward direction from t on.
    """

    @staticmethod
    def forward(ctx: Any, ahead: Tensor, back: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtypes = ahead.dtype, back.dtype
        ahead, back = ahead * LOG2_E, back * LOG2_E
        shape = (*ahead.shape, ahead.shape[-1])
        exponent, other = (torch.empty(shape, dtype=dtype, device=ahead.device) for _ in range(2))
        torch.sub(ahead.unsqueeze(-1), ahead.unsqueeze(-2), out=exponent)
        torch.sub(back.unsqueeze(-1), back.unsqueeze(-2), out=other)
        decay = exponent.tril_().add_(other.triu_()).exp2_()
        ctx.save_for_backward(decay)
        return decay

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (decay,) = ctx.saved_tensors
        product = _off_diagonal(grad * decay)
        rows, columns = product.sum(-1), product.sum(-2)
        product = product.tril_()
        lower_rows, lower_columns = product.sum(-1), product.sum(-2)
        ahead = lower_rows - lower_columns
        back = (rows - lower_rows) - (columns - lower_columns)
        return ahead.to(ctx.dtypes[0]), back.to(ctx.dtypes[1]), None


def _off_diagonal(product: Tensor) -> Tensor:
    """The diagonal is constant; its large entries would cancel between the sums, but not exactly."""
    product.diagonal(dim1=-2, dim2=-1).zero_()
    return product
