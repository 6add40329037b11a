"""Matrices of decays between tokens, both ways, and the gradients of the steps between them, made stably."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..torch_ops import Operator, Outputs, nothing

# exp2 is several times faster than exp where MKL has no fast path.
LOG2_E = math.log2(math.e)
# Tokens of a block, whose sums cost less than running sums over whole rows.
BLOCK = 16


def two_way_decay(ahead: Tensor, back: Tensor, ids: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(..., L, L) in `dtype`: what is left at t of a token s, scanned from its own side; the diagonal is 1.

    ahead, back (..., L): the log decays of each direction's steps. From s < t the steps s + 1 ... t of the
    first lie between the two, from s > t the steps t ... s - 1 of the second. ids (..., L), broadcast: 0
    between tokens that differ in it.
    """
    return _TWO_WAY(ahead, back, ids, dtype)[0]


def spanned(pairs: Tensor) -> Tensor:
    """(..., L): of every step j the sum of the pairs (t, s), (..., L, L), that it lies between, s < j <= t.

    Not the sums up to j of rows less columns, which are the same numbers: there the pairs on one side of j
    cancel, and leave their rounding where nothing passes over j.
    """
    return _shifted(pairs.cumsum(-1).tril_(-1).sum(-2))


def spanned_both_ways(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """`spanned`, and the same from the other side, t <= j < s. Large matrices are summed by block first."""
    length = pairs.shape[-1]
    more = -length % BLOCK
    full = F.pad(pairs, (0, more, 0, more)) if more else pairs
    blocks = full.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    inner = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
    parts = (blocks.sum(-1), blocks.sum(-3), inner)
    ahead, back = _over_blocks(*parts), _over_blocks(*(part.flip(-1, -2, -3) for part in parts)).flip(-1)
    return ahead[..., :length], back[..., :length]


def _over_blocks(rows: Tensor, columns: Tensor, inner: Tensor) -> Tensor:
    """`spanned` (..., K b) of K blocks of b tokens. rows (..., K, b, K): each t's sums over the blocks of s;
    columns (..., K, K, b): each s's sums over the blocks of t; inner (..., K, b, b): the blocks of both."""
    left = _shifted(rows.cumsum(-1))  # (..., K, b, K): over the blocks of s in front of one
    far = left.sum(-2).tril(-1).sum(-2).unsqueeze(-1)  # both tokens in other blocks than the step
    same_t = left.diagonal(dim1=-3, dim2=-1).transpose(-1, -2).flip(-1).cumsum(-1).flip(-1)
    later = torch.ones(columns.shape[-3:-1], dtype=columns.dtype, device=columns.device).tril_(-1)
    same_s = _shifted((columns * later.unsqueeze(-1)).sum(-3).cumsum(-1))
    return (far + same_t + same_s + spanned(inner)).flatten(-2)


def _shifted(sums: Tensor) -> Tensor:
    """Of sums up to each element, those in front of it. By subtraction they would lose digits."""
    return F.pad(sums, (1, 0))[..., :-1]


def _differ(ids: Tensor) -> Tensor:
    return ids.unsqueeze(-1) != ids.unsqueeze(-2)


def _forward(ahead: Tensor, back: Tensor, ids: Tensor | None, dtype: torch.dtype) -> Outputs:
    # Sums grow with the length, and only their differences matter: float64, which mps has not.
    exact = ahead.dtype if ahead.device.type == "mps" else torch.float64
    ahead = (ahead * LOG2_E).cumsum(-1, dtype=exact)
    back = (back * LOG2_E).flip(-1).cumsum(-1, dtype=exact).flip(-1)
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
    grad_ahead, grad_back = spanned_both_ways(grad * decay)
    return grad_ahead.to(ahead.dtype), grad_back.to(back.dtype), nothing(grad)


def _square(steps: Tensor, dtype: torch.dtype) -> Tensor:
    return steps.new_empty((*steps.shape, steps.shape[-1]), dtype=dtype)


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
