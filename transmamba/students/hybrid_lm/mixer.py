"""A Mamba-2 mixer with the tensors of transformers' Bamba and GraniteMoeHybrid, and attention's heads.

in_proj's rows are [z | x | B | C | dt]; SiLU follows the convolution; the gated norm is one of each group,
here of each head. Mamba-2: arXiv 2405.21060. Shapes: B rows, L tokens, D channels, H heads of P channels and
N states.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transmamba_kernels import causal_conv1d, ssd_scan

from ...core.output import Context, wide
from ...layers.mixed import Mixed
from .architectures import normalises
from .norms import GatedNorm, RMSNorm

# silu of it is 1
OPEN_GATE = 1.2784645427610738


def decay_log(half_life: float) -> float:
    """The A_log with which a state halves in so many steps of 1."""
    return math.log(math.log(2) / half_life)


def norm_weight(eps: float, tap: float) -> float:
    """Of a norm that undoes what its eps, the convolution's tap and SiLU do to small numbers: silu(tap u) is
    tap u / 2 for small ones, as x, B and C are, and the norm divides by sqrt(eps) while what it reads is far
    smaller than that."""
    return float(eps**0.5 / (tap / 2) ** 3)


class HybridMixer(nn.Module):
    """Where the configuration normalises keys and queries, so is each head of B and C: before the
    convolution, as attention does it before it turns them.

    half_life, tap: see `neutral_`
    """

    def __init__(self, config: Any, half_life: float, tap: float) -> None:
        super().__init__()
        self.heads, self.head_dim = config.mamba_n_heads, config.mamba_d_head
        self.real = config.num_attention_heads  # of the heads; others are there for the class's sake
        self.groups, self.states = config.mamba_n_groups, config.mamba_d_state
        self.inner = self.heads * self.head_dim
        self.conv_dim = self.inner + 2 * self.groups * self.states
        taps, eps, bias = config.mamba_d_conv, config.rms_norm_eps, config.mamba_proj_bias
        self.in_proj = nn.Linear(config.hidden_size, self.inner + self.conv_dim + self.heads, bias=bias)
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, taps, groups=self.conv_dim, bias=config.mamba_conv_bias
        )
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = GatedNorm(self.inner, self.inner // self.groups, eps)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=bias)
        self.normed = normalises(config)
        if self.normed:
            self.B_norm, self.C_norm = RMSNorm(self.states, eps), RMSNorm(self.states, eps)
        self.half_life, self.tap = half_life, tap
        self.neutral_()

    @torch.no_grad()
    def neutral_(self) -> None:
        """Everything but the projections: the convolution the identity times `tap`, steps of 1, a decay by
        half in `half_life` tokens, no skip, and a norm that undoes what its own eps, the taps and SiLU do to
        small numbers."""
        self.conv1d.weight.zero_()
        self.conv1d.weight[:, 0, -1] = self.tap
        if self.conv1d.bias is not None:
            self.conv1d.bias.zero_()
        self.dt_bias.fill_(math.log(math.expm1(1.0)))
        self.A_log.fill_(decay_log(self.half_life))
        self.D.zero_()
        self.norm.weight.fill_(norm_weight(self.norm.eps, self.tap))
        self.rows("dt").zero_()

    @torch.no_grad()
    def drawn_(self) -> None:
        """Everything but the projections as in Mamba-2's own code (github.com/state-spaces/mamba): steps
        between 1/1000 and 1/10 and decay rates between 1 and 16, a skip of 1, torch's convolution."""
        self.conv1d.reset_parameters()
        steps = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias.copy_(steps.expm1().log())  # softplus undone
        self.A_log.uniform_(1, 16).log_()
        self.D.fill_(1)
        self.norm.weight.fill_(1)
        self.tap = 1.0  # what biases of attention come into

    def rows(self, part: str) -> Tensor:
        """The rows of in_proj's weight that make `z`, `x`, `B`, `C` or `dt`."""
        return self.in_proj.weight[self.slice_of(part)]

    def slice_of(self, part: str) -> slice:
        """Which rows of in_proj make a part."""
        narrow = self.groups * self.states
        sizes = dict(z=self.inner, x=self.inner, B=narrow, C=narrow, dt=self.heads)
        before = list(sizes)[: list(sizes).index(part)]
        start = sum(sizes[name] for name in before)
        return slice(start, start + sizes[part])

    def forward(self, u: Tensor, context: Context, by_head: bool = False) -> Mixed:
        """u (B, L, D) -> `Mixed`; with `by_head` among its parts is what the scan's matrix is made of. A
        masked token adds nothing to the state, as in transformers; state and convolution begin anew where
        the segment changes."""
        real = None if context.mask is None else context.mask.unsqueeze(-1)
        z, mixed, delta = self._projected(u if real is None else u.masked_fill(~real, 0))
        if self.normed:
            mixed = self._normalised(mixed)
        mixed = causal_conv1d(
            mixed, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu", seq_idx=context.segments
        )
        if real is not None:
            mixed = mixed.masked_fill(~real, 0)
        narrow = self.groups * self.states
        x, B, C = mixed.split([self.inner, narrow, narrow], dim=-1)
        A, D = -wide(self.A_log).exp(), wide(self.D)
        y = ssd_scan(
            x.unflatten(-1, (self.heads, self.head_dim)),
            delta,
            A,
            B.unflatten(-1, (self.groups, self.states)),
            C.unflatten(-1, (self.groups, self.states)),
            D=D,
            delta_bias=wide(self.dt_bias),
            delta_softplus=True,
            seq_idx=context.segments,
        )
        values = self.norm(y.flatten(2), z)
        parts = {"B": B, "C": C, "values": values}
        if by_head:
            parts |= self._by_head(B, C, delta, A, D)
        return Mixed(self.out_proj(values), parts=parts)

    def _by_head(self, B: Tensor, C: Tensor, delta: Tensor, A: Tensor, D: Tensor) -> dict[str, Tensor]:
        """What the scan's matrix over tokens is made of, of the heads that attention has: k and q, which are
        B and C, (B, H, L, N); dt, the steps, dA, the logarithms of the decays, and D, (B, L, H)."""
        dt = F.softplus(wide(delta) + wide(self.dt_bias))
        scalars = {"dt": dt, "dA": dt * A, "D": D.expand_as(dt)}
        heads = {"k": self._of_heads(B), "q": self._of_heads(C)}
        return {name: part[:, : self.real] for name, part in heads.items()} | {
            name: part[..., : self.real] for name, part in scalars.items()
        }

    def _of_heads(self, part: Tensor) -> Tensor:
        """Of each group's states (B, L, G N) each head's, (B, H, L, N); not copied where each has its own."""
        grouped = part.unflatten(-1, (self.groups, 1, self.states)).permute(0, 2, 3, 1, 4)
        return grouped.expand(-1, -1, self.heads // self.groups, -1, -1).flatten(1, 2)

    def _projected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, what is convolved, and dt. dt by itself: with its few rows the product's width is odd, for which
        GPUs have slow kernels alone."""
        weight, bias, most = self.in_proj.weight, self.in_proj.bias, self.inner + self.conv_dim
        parts = [
            F.linear(u, weight[rows], None if bias is None else bias[rows])
            for rows in (slice(most), slice(most, None))
        ]
        z, mixed = parts[0].split([self.inner, self.conv_dim], dim=-1)
        return z, mixed, parts[1]

    def _normalised(self, mixed: Tensor) -> Tensor:
        """x, B and C side by side, with each head of B and C normalised; zeros (padding) stay zeros."""
        narrow = self.groups * self.states
        x, B, C = mixed.split([self.inner, narrow, narrow], dim=-1)
        B, C = (
            norm(part.unflatten(-1, (self.groups, self.states))).flatten(-2)
            for norm, part in ((self.B_norm, B), (self.C_norm, C))
        )
        return torch.cat([x, B, C], dim=-1)
