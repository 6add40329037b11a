"""What an initial state adds to what is read out of a scan, in closed form: for scans that take none.

The recurrence is linear and its decay diagonal, so that a state h0 in front of the first token adds
C_t . exp(A S_t) h0 to y_t, where S_t is the sum of the step sizes up to t. Padding does not decay it, and
every document of a packed row begins with it. Shapes: B rows, L tokens, D channels, N states, H heads of P
channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.output import begins_of, wide
from ...layers.causal import STILL
from .inside import Inside


def step_sizes(delta: Tensor, bias: Tensor | None) -> Tensor:
    """softplus of delta (B, L, ...) and its bias, in float32."""
    return F.softplus(wide(delta) if bias is None else wide(delta) + wide(bias))


def stilled(inside: Inside, delta: Tensor, mask: Tensor | None) -> Tensor:
    """delta (B, L, ...) before its softplus, with steps of 0 in the padding where a state is there before."""
    if mask is None or not inside.begins:
        return delta
    return delta.masked_fill(~mask.bool()[:, :, None], STILL)


def limited(delta: Tensor, bias: Tensor | None, limit: Sequence[float], mask: Tensor | None) -> Tensor:
    """Step sizes (B, L, ...) within a limit, and 0 in the padding: a least step would let it decay a state
    that is there before."""
    dt = step_sizes(delta, bias).clamp(*limit)
    return dt if mask is None else dt.masked_fill(~mask.bool()[:, :, None], 0)


def passed(
    dt: Tensor, mask: Tensor | None = None, segments: Tensor | None = None, reverse: bool = False
) -> Tensor:
    """S_t, sums (B, L, ...) of the step sizes in a document so far; from the end with `reverse`."""
    if mask is not None:
        dt = dt.masked_fill(~mask.bool()[:, :, None], 0)
    if reverse:
        return dt.flip(1).cumsum(dim=1).flip(1)
    sums = dt.cumsum(dim=1)
    if segments is None:
        return sums
    # sums never fall, so that the last is the largest
    before = torch.where(begins_of(segments)[:, :, None], sums - dt, 0)
    return sums - before.cummax(dim=1).values


def started(inside: Inside, C: Tensor, sums: Tensor, A: Tensor, suffix: str = "") -> Tensor | None:
    """What the initial state adds (B, L, D): of C (B, L, N), sums (B, L, D) and A (D, N)."""
    first = inside.start(C.shape[-1], suffix)
    if first is None:
        return None
    first = wide(first)
    read = torch.zeros_like(sums)
    for n in range(C.shape[-1]):  # one state after the other: memory of one y
        read = read + wide(C[..., n : n + 1]) * torch.exp(sums * A[:, n]) * first[:, n]
    return read.to(C.dtype)


def started_heads(inside: Inside, C: Tensor, sums: Tensor, A: Tensor, suffix: str = "") -> Tensor | None:
    """(B, L, H, P), of C (B, L, G, N), sums (B, L, H) and A (H,)."""
    first = inside.start(C.shape[-1], suffix)
    if first is None:
        return None
    groups, states = C.shape[2:]
    by_group = wide(first).view(groups, -1, states)
    read = (wide(C).transpose(1, 2) @ by_group.mT).transpose(1, 2)
    decayed = read.reshape(*sums.shape, -1) * torch.exp(sums * A)[..., None]
    return decayed.to(C.dtype)


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Their sum, of what is there."""
    return b if a is None else a if b is None else a + b
