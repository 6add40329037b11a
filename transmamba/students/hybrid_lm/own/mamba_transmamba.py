# SPDX-License-Identifier: Apache-2.0
"""Mamba (arXiv 2312.00752), token after token. Shapes: B rows, T new tokens, D channels, I inner channels of
N states, K taps."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .experts_transmamba import HybridSwitch
from .scan_transmamba import Pass, wide


class HybridMamba(nn.Module):
    """A padded token adds nothing to the state. In a layer of switch_mamba some projections have experts."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        width, self.layer = config.hidden_size, layer
        self.inner, self.states = config.mamba_expand * width, config.mamba_d_state
        self.rank, self.taps = math.ceil(width / 16), config.mamba_d_conv
        within = config.inner_experts if config.layer_kinds[layer] == "switch_mamba" else ()

        def projection(name: str, into: int, outputs: int) -> nn.Module:
            if name in within:
                return HybridSwitch(into, outputs, config.num_experts)
            return nn.Linear(into, outputs, bias=False)

        self.apart = bool(within)
        if self.apart:
            self.conv_proj = projection("conv", width, self.inner)
            self.gate_proj = projection("gate", width, self.inner)
        else:
            self.in_proj = nn.Linear(width, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, self.taps, groups=self.inner)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * self.states, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.zeros(self.inner, self.states))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = projection("out", self.inner, width)

    def forward(self, u: Tensor, shared: Pass) -> Tensor:
        """What it adds to the stream, of the stream's norm u (B, T, D)."""
        padding = ~shared.real.unsqueeze(-1)
        held = {} if shared.cache is None else shared.cache.held[self.layer]
        u = u.masked_fill(padding, 0)
        x, z = (self.conv_proj(u), self.gate_proj(u)) if self.apart else self.in_proj(u).chunk(2, dim=-1)
        before = held.get("before", x.new_zeros(len(x), self.taps - 1, self.inner))
        longer = torch.cat([before, x], dim=1)
        x = F.silu(F.conv1d(longer.mT, self.conv1d.weight, self.conv1d.bias, groups=self.inner).mT)
        x = x.masked_fill(padding, 0)
        low, B, C = self.x_proj(x).split([self.rank, self.states, self.states], dim=-1)
        step = F.softplus(wide(F.linear(low, self.dt_proj.weight)) + wide(self.dt_proj.bias))
        y, state = self._scanned(wide(x), step, wide(B), wide(C), held.get("state"))
        if shared.cache is not None:
            last = longer[:, longer.shape[1] - self.taps + 1 :]
            shared.cache.keep(self.layer, before=last, state=state)
        y = (y + wide(self.D) * wide(x)) * F.silu(wide(z))
        return self.out_proj(y.to(u.dtype))

    def _scanned(
        self, x: Tensor, step: Tensor, B: Tensor, C: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y_t = S_t C_t with S_t = exp(step_t A) S_(t-1) + step_t x_t B_tᵀ, and the last S (B, I, N)."""
        rate, made = -wide(self.A_log).exp(), []
        if state is None:
            state = x.new_zeros(len(x), self.inner, self.states)
        for t in range(x.shape[1]):
            decay = (step[:, t, :, None] * rate).exp()
            state = decay * state + (step[:, t] * x[:, t])[..., None] * B[:, t, None]
            made.append((state * C[:, t, None]).sum(dim=-1))
        return torch.stack(made, dim=1), state
