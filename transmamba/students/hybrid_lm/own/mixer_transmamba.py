# SPDX-License-Identifier: Apache-2.0
"""Mamba-2 (arXiv 2405.21060) with attention's heads. Shapes: B rows, T new tokens, D channels, H heads of P
channels and N states, K taps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers_transmamba import HybridRMSNorm
from .scan_transmamba import Pass, scan_by_token, wide


class HybridGatedNorm(nn.Module):
    def __init__(self, channels: int, group: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.group, self.eps = group, eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """RMSNorm of x silu(z) over each group's channels, (B, T, H P)."""
        gated = (wide(x) * F.silu(wide(z))).unflatten(-1, (-1, self.group))
        return self.weight * F.rms_norm(gated, (self.group,), None, self.eps).flatten(-2).to(x.dtype)


class HybridMamba2(nn.Module):
    """in_proj's rows are [z | x | B | C | dt]; with qk_norm each head of B and C is normalised before the
    convolution. A padded token adds nothing to the state."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.size = layer, config.mamba_n_heads, config.mamba_d_head
        self.groups, self.states = config.mamba_n_groups, config.mamba_d_state
        self.inner, self.narrow = self.heads * self.size, self.groups * self.states
        channels, self.taps = self.inner + 2 * self.narrow, config.mamba_d_conv
        self.in_proj = nn.Linear(config.hidden_size, self.inner + channels + self.heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, self.taps, groups=channels, bias=True)
        self.dt_bias = nn.Parameter(torch.ones(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = HybridGatedNorm(self.inner, self.inner // self.groups, config.rms_norm_eps)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=False)
        self.normed = config.qk_norm
        if self.normed:
            self.B_norm = HybridRMSNorm(self.states, config.rms_norm_eps)
            self.C_norm = HybridRMSNorm(self.states, config.rms_norm_eps)

    def forward(self, u: Tensor, shared: Pass) -> Tensor:
        """What it adds to the stream, of the stream's norm u (B, T, D)."""
        padding = ~shared.real.unsqueeze(-1)
        held = {} if shared.cache is None else shared.cache.held[self.layer]
        z, mixed, dt = self.in_proj(u.masked_fill(padding, 0)).split(
            [self.inner, self.inner + 2 * self.narrow, self.heads], dim=-1
        )
        mixed, before = self._convolved(self._normalised(mixed), held.get("before"))
        x, B, C = mixed.masked_fill(padding, 0).split([self.inner, self.narrow, self.narrow], dim=-1)
        x = wide(x).unflatten(-1, (self.heads, self.size))
        step = F.softplus(wide(dt) + wide(self.dt_bias))
        y, state = self.scanned(x, step, B, C, held.get("state"))
        if shared.cache is not None:
            shared.cache.keep(self.layer, before=before, state=state)
        y = (y + wide(self.D)[:, None] * x).flatten(2).to(u.dtype)
        return self.out_proj(self.norm(y, z))

    def scanned(
        self, x: Tensor, step: Tensor, B: Tensor, C: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the scan alone makes of x (B, T, H, P), step (B, T, H), B and C (B, T, groups N), like x, and
        its last state (B, H, P, N)."""
        B, C = self._of_heads(wide(B)), self._of_heads(wide(C))
        return scan_by_token(x, step, -wide(self.A_log).exp(), B, C, state)

    def _normalised(self, mixed: Tensor) -> Tensor:
        if not self.normed:
            return mixed
        x, B, C = mixed.split([self.inner, self.narrow, self.narrow], dim=-1)
        B, C = (
            norm(part.unflatten(-1, (self.groups, self.states))).flatten(-2)
            for norm, part in ((self.B_norm, B), (self.C_norm, C))
        )
        return torch.cat([x, B, C], dim=-1)

    def _convolved(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """SiLU of the convolution over x (B, T, channels), and what later tokens read of it: the last K - 1;
        `before` are those of the tokens before."""
        if before is None:
            before = x.new_zeros(len(x), self.taps - 1, x.shape[-1])
        longer = torch.cat([before, x], dim=1)
        made = F.conv1d(longer.mT, self.conv1d.weight, self.conv1d.bias, groups=x.shape[-1])
        return F.silu(made.mT), longer[:, longer.shape[1] - self.taps + 1 :]

    def _of_heads(self, part: Tensor) -> Tensor:
        """(B, T, groups N) -> (B, T, H, N)"""
        grouped = part.unflatten(-1, (self.groups, self.states))
        return grouped.repeat_interleave(self.heads // self.groups, dim=2)
