"""Where the shares of a layer's far tokens begin: what softmax over all tokens gives them, by least squares.

Of a head's softmax the far tokens have the mass p, and logit(p) less the logarithm of their count is found
from the stream's norm by a line, each token weighted as an error of p would count. That would mix the true
far average in; the scan's is far from it before any training, so that each head's share is then weakened by
the factor with which all together are nearest to attention's output [proposal]. Shapes: L tokens, D channels,
H heads of P channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.output import Context, wide
from ...views.rope import Rope
from .far import share_of
from .layers import Attention
from .least_squares import ridge
from .nearby import Reading

# tokens a channel of the stream that a gate is fitted on; of more the equations would be hardly better
_TOKENS = 8
# of a factor: a gate that is shut has no gradient, and softmax gives no more than 1
_LEAST, _MOST = 0.02, 1.0
_SWEEPS = 50


@dataclass(frozen=True)
class _Row:
    """One row: the stream's norm (1, L, D), attention's output (1, L, D), what attention reads (1, H, L, P),
    and of each head how many tokens are far (H, L)."""

    u: Tensor
    wanted: Tensor
    reading: Reading
    read: tuple[Tensor, Tensor, Tensor]
    count: Tensor


def begin_far(
    attention: Attention,
    rope: Rope,
    sinks: int,
    rows: Iterable[tuple[Tensor, Context]],
    wanted: Sequence[Tensor],
) -> None:
    """Fit the gate of an attention whose window has a scan behind it; where no row has a far token it stays
    as it is.

    rows:   the normed stream of each row (1, L, D), and its context
    wanted: attention's output in each, alike
    """
    far, window = attention.far, attention.window
    assert far is not None and window is not None, "asked of layers that have both"
    found: list[_Row] = []
    tokens = 0
    for (u, context), target in zip(rows, wanted, strict=True):
        if tokens >= _TOKENS * u.shape[-1]:
            break
        reading = Reading.of(context, u, rope, (window,), sinks)
        read = attention.read(u, reading)
        count = far.averaged(u, *read, reading.nearby[window], context.segments)[1][0]
        if bool((count > 0).any()):
            found.append(_Row(u, target, reading, read, count))
            tokens += int((count[0] > 0).sum())
    if not found:
        return
    for h in range(attention.heads):
        line = _line(attention, window, found, h)
        far.gate.weight[h], far.gate.bias[h] = line[:-1], line[-1]
    factors = _factors(attention, window, found)
    logits = torch.cat(
        [
            (wide(far.gate(row.u)[0]).mT + row.count.log())[row.count > 0].unflatten(0, (attention.heads, -1))
            for row in found
        ],
        dim=1,
    )
    far.gate.bias.add_(_shift(logits.double(), factors))


def _line(attention: Attention, window: int, rows: Sequence[_Row], h: int) -> Tensor:
    """Weights and bias (D + 1,) of one head's gate."""
    width = rows[0].u.shape[-1]
    square = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=rows[0].u.device)
    along = square.new_zeros(width + 1)
    for row in rows:
        seen = row.count[h] > 0
        logit = _logit(attention, window, row, h)[seen]
        made = torch.nn.functional.pad(row.u[0, seen].double(), (0, 1), value=1.0)
        share = logit.sigmoid()
        weighted = made * (share * (1 - share)).clamp_min(1e-4)[:, None]
        square.addmm_(weighted.mT, made)
        along += weighted.mT @ (logit - row.count[h, seen].double().log())
    return ridge(square, along)


def _logit(attention: Attention, window: int, row: _Row, h: int) -> Tensor:
    """log(far mass / near mass) of one head's softmax over all tokens, (L,)."""
    q, k, _ = row.read
    scores = q[0, h].double() @ k[0, h // (attention.heads // attention.kv_heads)].double().mT
    every = row.reading.allowed
    every = torch.ones_like(scores, dtype=torch.bool).tril() if every is None else every[0, 0]
    near = row.reading.nearby[window].allowed
    assert near is not None, "a row with far tokens is longer than a window"
    scores = (scores * q.shape[-1] ** -0.5).masked_fill(~every, -torch.inf)
    inside, outside = scores.masked_fill(~near[0, 0], -torch.inf), scores.masked_fill(near[0, 0], -torch.inf)
    return outside.logsumexp(dim=-1) - inside.logsumexp(dim=-1)


def _factors(attention: Attention, window: int, rows: Sequence[_Row]) -> Tensor:
    """Of each head's share (H,), the factor with which all together are nearest to attention's output."""
    far, heads = attention.far, attention.heads
    assert far is not None, "asked of layers with a scan"
    columns = attention.o_proj.weight.double().mT.unflatten(0, (heads, -1))  # (H, P, D)
    square = torch.zeros(heads, heads, dtype=torch.float64, device=columns.device)
    along = square.new_zeros(heads)
    for row in rows:
        near = row.reading.nearby[window]
        q, k, v = row.read
        mixed = near.attend(q, k, v)
        average, count = far.averaged(row.u, q, k, v, near, row.reading.context.segments)
        share = share_of(wide(far.gate(row.u)).mT, count)[..., None]
        made = ((share * (average - mixed))[0].double() @ columns).flatten(1)  # (H, L D)
        goal = row.wanted.double() - attention.o_proj(mixed.transpose(1, 2).flatten(2)).double()
        square += made @ made.mT
        along += made @ goal.flatten()
    return _bounded(square, along)


def _shift(logits: Tensor, factors: Tensor) -> Tensor:
    """What is added to each head's logits (H, M), so that its share is on average `factors` (H,) of what it
    was: by bisection, for a share is no product."""
    wanted = factors * logits.sigmoid().mean(dim=1)
    low, high = factors.log() - 20, torch.zeros_like(factors)
    for _ in range(_SWEEPS):
        middle = (low + high) / 2
        below = (logits + middle[:, None]).sigmoid().mean(dim=1) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _bounded(square: Tensor, along: Tensor) -> Tensor:
    """The factors (H,) from `_LEAST` to `_MOST` with which things of Gram matrix `square` are nearest to
    something, `along` it: one after the other, until none moves. Clipping the free solution would not be:
    factors that make up for each other would be parted."""
    found = torch.full_like(along, _LEAST)
    for _ in range(_SWEEPS):
        for h in range(len(found)):
            rest = along[h] - square[h] @ found + square[h, h] * found[h]
            found[h] = (rest / square[h, h].clamp_min(1e-12)).clamp(_LEAST, _MOST)
    return found
