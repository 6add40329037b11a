# SPDX-License-Identifier: Apache-2.0
"""What lies beyond a layer's window: the scan of Mamba-2 (arXiv 2405.21060), as an average of the values of
all tokens that have left the window. Shapes: B rows, T new tokens, S known ones, D channels, H heads of q and
G of k and v, of P channels and N = P states."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache_transmamba import chosen
from .scan_transmamba import Pass, scan, wide

# of the tokens beyond a window, the least mean weight that is one
LEAST = 1e-20


class HybridFar(nn.Module):
    """With positive features c = softmax(q M) and b = softmax(k M'), S of b and v and z of b alone, far is
    S c / (z · c), and its share sigmoid(gate + log(z · 1)): 0 where nothing is far. Heads that share one of k
    and v share its state, whose last row is z."""

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
        self, u: Tensor, q: Tensor, known: dict[str, Tensor], left: tuple[Tensor, Tensor], shared: Pass
    ) -> tuple[Tensor, Tensor]:
        """far (B, H, T, P) and its share (B, H, T, 1), at least in float32, of new tokens' u (B, T, D) and q
        (B, H, T, P).

        known: keys, values and steps of what attention reads and one token more (B, G, S, ...)
        left:  see `left_of`
        """
        at, there = left
        keys, values, step = (chosen(known[name], at) for name in ("keys", "values", "steps"))
        step = step[..., 0] * there[:, None]
        dtype, groups = step.dtype, keys.shape[1]
        b = (keys @ self.keys).softmax(dim=-1, dtype=dtype)
        c = (q @ self.queries).softmax(dim=-1, dtype=dtype).unflatten(1, (groups, -1))
        # beside the values a 1, whose average is what the others are divided by
        x = torch.cat([values.to(dtype), b.new_ones(*b.shape[:3], 1)], dim=-1)
        held = {} if shared.cache is None else shared.cache.held[self.layer]
        rate, before = -wide(self.A_log).exp(), held.get("state")
        y, state = scan(x, step, rate, b, c, before)
        count = self._counted(step, rate, before, state)
        if shared.cache is not None:
            shared.cache.keep(self.layer, state=state)
        # 0 where nothing is far; of 0 neither logarithm nor ratio has a gradient, and the ratio of numbers
        # near the smallest ones one that is all rounding
        gate = wide(self.gate(u)).mT.unflatten(1, (groups, -1))[..., None]
        share = torch.sigmoid(gate + count.clamp_min(torch.finfo(dtype).tiny).log())
        mass = y[..., -1:]
        far = y[..., :-1] / torch.where(mass > LEAST * count, mass, torch.inf)
        return far.flatten(1, 2), share.flatten(1, 2)

    @staticmethod
    def _counted(step: Tensor, rate: Tensor, before: Tensor | None, state: Tensor) -> Tensor:
        """z · 1, (B, G, 1, T, 1): features add up to 1, so that it is a scan of ones."""
        sums = None if before is None else before[:, :, -1:].sum(dim=-1, keepdim=True)
        if step.shape[2] == 1:
            return state[:, :, None, -1:].sum(dim=-1, keepdim=True)
        ones = torch.ones_like(step)[..., None]
        return scan(ones, step, rate, ones, ones[:, :, None], sums)[0]


def left_of(places: Tensor, shared: Pass, window: int, sinks: int) -> tuple[Tensor, Tensor]:
    """Which of the known tokens at `places` (B, S) has just left each new one's window, (B, T), and whether
    there is one that is no sink, (B, T)."""
    mine = shared.places
    if shared.joined and places is mine:  # they lie one after the other
        at = torch.arange(mine.shape[1], device=mine.device) - window
        within, at = at >= 0, at.clamp_min(0)
        return at.expand_as(mine), within & (places[:, at] >= sinks) & (mine >= 0)
    theirs = places[:, None, :]
    left = (mine[:, :, None] - window == theirs) & (theirs >= sinks) & (mine >= 0)[:, :, None]
    return left.to(torch.uint8).argmax(dim=-1), left.any(dim=-1)
