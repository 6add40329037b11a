# SPDX-License-Identifier: Apache-2.0
"""What lies beyond a layer's window: the scan of Mamba-2 (arXiv 2405.21060), as an average of the values of
all tokens that have left the window. Shapes: B rows, T new tokens, S known ones, D channels, H heads of q and
G of k and v, of P channels and N = P states."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .scan_transmamba import Pass, scan, wide


class HybridFar(nn.Module):
    """With positive features c = softmax(q M) and b = softmax(k M'), S of b and v and z of b alone, far is
    S c / (z · c), and its share sigmoid(gate + log(z · 1)): 0 where nothing is far. Heads that share one of k
    and v share its state."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.layer, size = layer, config.head_dim
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.queries = nn.Parameter(torch.eye(size).repeat(heads, 1, 1))
        self.keys = nn.Parameter(torch.eye(size).repeat(groups, 1, 1))
        self.gate = nn.Linear(config.hidden_size, heads)
        self.steps = nn.Linear(config.hidden_size, groups)
        self.A_log = nn.Parameter(torch.zeros(groups))

    def step(self, u: Tensor) -> Tensor:
        """How much of each token the state will take, (B, G, T, 1)."""
        return F.softplus(wide(self.steps(u))).mT[..., None]

    def forward(
        self,
        u: Tensor,
        q: Tensor,
        known: dict[str, Tensor],
        places: Tensor,
        nearby: tuple[int, int],
        shared: Pass,
    ) -> tuple[Tensor, Tensor]:
        """far (B, H, T, P) and its share (B, H, T, 1), of new tokens' u (B, T, D) and q (B, H, T, P).

        known:  keys, values and steps of what attention reads and one token more (B, G, S, ...)
        places: (B, S) theirs
        """
        held = {} if shared.cache is None else shared.cache.held[self.layer]
        at, there = _left(places, shared, *nearby)
        keys, x, step = (_taken(known[name], at, there) for name in ("keys", "values", "steps"))
        step = step[..., 0]
        b = (wide(keys) @ wide(self.keys)).softmax(dim=-1) * there[:, None, :, None]
        c = (wide(q) @ wide(self.queries)).softmax(dim=-1)
        rate, times = -wide(self.A_log).exp(), q.shape[1] // b.shape[1]
        sums, state = held.get("sums"), held.get("state")
        one = b.new_ones(*b.shape[:3], 1)
        z, sums = _scan(b, step, rate, one, one, None if sums is None else sums[..., None])
        x, b, z, step = (part.repeat_interleave(times, dim=1) for part in (wide(x), b, z, step))
        before = None if state is None else state.repeat_interleave(times, dim=1)
        y, state = _scan(x, step, rate.repeat_interleave(times), b, c, before)
        if shared.cache is not None:
            shared.cache.keep(self.layer, sums=sums[..., 0], state=state[:, ::times])
        mass, count = (z * c).sum(dim=-1, keepdim=True), z.sum(dim=-1, keepdim=True)
        there, gate = count > 0, wide(self.gate(u)).mT[..., None]
        share = torch.sigmoid(gate + torch.where(there, count, 1).log())
        far = y / torch.where(mass > 0, mass, 1)
        return far.to(q.dtype), torch.where(there, share, 0).to(q.dtype)


def _left(places: Tensor, shared: Pass, window: int, sinks: int) -> tuple[Tensor, Tensor]:
    """Which known token has just left each new one's window, (B, T), and whether there is one that is no
    sink, (B, T)."""
    mine = shared.places
    if shared.joined and places is mine:  # they lie one after the other
        at = torch.arange(mine.shape[1], device=mine.device) - window
        within, at = at >= 0, at.clamp_min(0)
        return at.expand_as(mine), within & (places[:, at] >= sinks) & (mine >= 0)
    theirs = places[:, None, :]
    left = (mine[:, :, None] - window == theirs) & (theirs >= sinks) & (mine >= 0)[:, :, None]
    return left.long().argmax(dim=-1), left.any(dim=-1)


def _taken(x: Tensor, at: Tensor, there: Tensor) -> Tensor:
    """Of x (B, G, S, ...) the tokens `at` (B, T), (B, G, T, ...), 0 where none is there."""
    found = x.gather(2, at[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    return found * there[:, None, :, None]


def _scan(
    x: Tensor, step: Tensor, rate: Tensor, b: Tensor, c: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The scan of tensors whose heads come before their tokens."""
    x, step, b, c = (part.transpose(1, 2) for part in (x, step, b, c))
    made, state = scan(x, step, rate, b, c, state)
    return made.transpose(1, 2), state
