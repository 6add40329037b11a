"""Cosines of tokens, in few passes over the features. Shapes: B rows, M matched tokens, T channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_EPSILON = 1e-6


class _TokenCosine(torch.autograd.Function):
    """Cosine of each token of a with one of length 1, a constant. Few passes over the features, none in a
    wider type than they came in: the composed operators cost more than the student's own layers."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, unit_b: Tensor) -> Tensor:
        norm_a = token_norms(a)
        value = (a * unit_b).sum(dim=-1, dtype=norm_a.dtype) / norm_a
        ctx.save_for_backward(a, unit_b, norm_a, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, unit_b, norm_a, value = ctx.saved_tensors
        toward = (grad / norm_a).to(a.dtype).unsqueeze(-1)
        along = (-grad * value / norm_a.square()).to(a.dtype).unsqueeze(-1)
        return torch.addcmul(unit_b * toward, a, along), None


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each token: (..., B, M, T), (..., B, M, T) -> (..., B, M) float32; b at length 1 already,
    `unit`, a constant, and it may have fewer leading axes."""
    return _TokenCosine.apply(a, b.detach().to(a.dtype))


def unit(x: Tensor) -> Tensor:
    """Tokens at length 1, before anything is multiplied: the product of two raw streams overflows in
    float16."""
    return x / token_norms(x).unsqueeze(-1)


def token_norms(x: Tensor) -> Tensor:
    """Lengths of the tokens, (..., T) -> (...), at least 1e-6; float64 stays, all else becomes float32."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(x, dim=-1, dtype=wide).clamp_min(_EPSILON)
