"""Vision Mamba's mixer ("bimamba v2"): one input and output projection, two selective scans.

Parameter names and shapes are those of hustvl/Vim, so that its checkpoints load. Shapes: B images, L tokens,
D channels, E = expand * D inner channels, N state size, R rank of delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transmamba_kernels import bidirectional_conv1d, bidirectional_scan

from .mixed import Mixed

# silu(NEUTRAL_GATE) = 1: a gate whose pre-activation sits here lets the value path through unchanged
NEUTRAL_GATE = 1.2784645427610738
DELTA_RANGE = (1e-3, 1e-1)
# decay rate of the state that averages: by a tenth over a sequence
_SLOW = 0.1


class BidirectionalMamba(nn.Module):
    """out_proj((y_f + y_b) / 2), each direction with its own convolution, delta, B, C, A and D.

    proj_bias: biases of in_proj and out_proj (the official model has none)
    gate_bias: a bias on the gate's pre-activation alone; at `NEUTRAL_GATE` the gate is neutral
    """

    conv1d: nn.Conv1d
    conv1d_b: nn.Conv1d
    x_proj: nn.Linear
    x_proj_b: nn.Linear
    dt_proj: nn.Linear
    dt_proj_b: nn.Linear

    def __init__(
        self,
        dim: int,
        *,
        expand: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        proj_bias: bool = False,
        gate_bias: bool = False,
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.inner, self.rank, self.d_state = inner, rank, d_state
        self.in_proj = nn.Linear(dim, 2 * inner, bias=proj_bias)
        self.gate_bias = nn.Parameter(torch.zeros(inner)) if gate_bias else None
        for suffix in ("", "_b"):
            self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, d_conv, groups=inner))
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, rank + 2 * d_state, bias=False))
            self.add_module(f"dt_proj{suffix}", nn.Linear(rank, inner))
            init_delta(getattr(self, f"dt_proj{suffix}"))
        states = torch.arange(1, d_state + 1, dtype=torch.float32).repeat(inner, 1)
        self.A_log = nn.Parameter(states.log())
        self.A_b_log = nn.Parameter(states.log())
        self.D = nn.Parameter(torch.ones(inner))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, dim, bias=proj_bias)

    def _selected(self, x: Tensor, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
        """delta before its bias (B, L, E), B and C (B, L, N) of one direction, from its convolved x."""
        raw = getattr(self, f"x_proj{suffix}")(x)
        delta, B, C = raw.split([self.rank, self.d_state, self.d_state], dim=-1)
        return F.linear(delta, getattr(self, f"dt_proj{suffix}").weight), B, C

    def forward(self, u: Tensor, *, branches: bool = False, tokens: Tensor | None = None) -> Mixed:
        """u (B, L, D) -> `Mixed`; `branches` asks for its `half`, on `tokens` (positions) or on all."""
        x, z = self.in_proj(u).chunk(2, dim=-1)
        if self.gate_bias is not None:
            z = z + self.gate_bias
        conv, conv_b = self.conv1d, self.conv1d_b
        x_f, x_b = bidirectional_conv1d(
            x, conv.weight[:, 0], conv.bias, conv_b.weight[:, 0], conv_b.bias, activation="silu"
        )
        delta_f, B_f, C_f = self._selected(x_f, "")
        delta_b, B_b, C_b = self._selected(x_b, "_b")
        scanned = bidirectional_scan(
            x_f,
            x_b,
            delta_f,
            delta_b,
            -self.A_log.float().exp(),
            -self.A_b_log.float().exp(),
            B_f,
            B_b,
            C_f,
            C_b,
            D=self.D.float(),
            D_b=self.D_b.float(),
            z=z,
            delta_bias=self.dt_proj.bias.float(),
            delta_bias_b=self.dt_proj_b.bias.float(),
            delta_softplus=True,
            return_branches=branches,
        )
        parts = {"B": B_f, "C": C_f, "B_b": B_b, "C_b": C_b}
        if not branches:
            return Mixed(self.out_proj(scanned), parts=parts)
        merged, y_f, y_b = scanned
        half = (y_f - y_b) * 0.5
        half = half if tokens is None else half.index_select(1, tokens)
        return Mixed(self.out_proj(merged), half=half, parts=parts)

    def written(self) -> Tensor:
        """The matrix (D, E) through which it writes; an adapter around it gives its own, changed one."""
        return self.out_proj.weight

    @torch.no_grad()
    def mimic_(self) -> None:
        """Start as close to a plain linear value path as the parameters allow: identity convolutions, and a
        neutral gate where there is a bias to hold it."""
        for conv in (self.conv1d, self.conv1d_b):
            conv.weight.zero_()
            conv.weight[:, 0, -1] = 1.0
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        gate: Tensor | None = self.gate_bias
        if gate is None and self.in_proj.bias is not None:
            gate = self.in_proj.bias[self.inner :]
        if gate is not None:
            gate.fill_(NEUTRAL_GATE)
            self.in_proj.weight[self.inner :].zero_()

    @torch.no_grad()
    def average_(self, length: int) -> None:
        """Start as the average over `length` tokens of inner channels that come in pairs v and -v, behind
        identity convolutions: y_t = sum_s x_s / length, whatever t, once `level_` has set the scale.

        B and C have no bias to hold a constant, but the sum over pairs, silu(v) + silu(-v), is positive and
        hardly varies: one state reads it on both sides, C of the others is 0. delta is 1 / length.
        """
        for suffix in ("", "_b"):
            x_proj, dt_proj = getattr(self, f"x_proj{suffix}"), getattr(self, f"dt_proj{suffix}")
            reads_B, reads_C = x_proj.weight[self.rank :].split(self.d_state)
            reads_C.zero_()
            reads_B[0], reads_C[0] = 1.0, 1.0
            nn.init.zeros_(dt_proj.weight)
            nn.init.constant_(dt_proj.bias, math.log(math.expm1(1 / length)))
        for rates in (self.A_log, self.A_b_log):
            rates[:, 0] = math.log(_SLOW)
        for skip in (self.D, self.D_b):
            skip.zero_()

    @torch.no_grad()
    def level_(self, made: Sequence[dict[str, Tensor]]) -> None:
        """After `average_`: scale so that B C of the averaging state is 2 on the inputs that made these
        parts, a batch each (each direction gives half of the average)."""
        for suffix in ("", "_b"):
            level = torch.cat([parts[f"B{suffix}"][..., 0].flatten() for parts in made]).mean()
            factor = math.sqrt(2) / float(level)
            reads_B, reads_C = getattr(self, f"x_proj{suffix}").weight[self.rank :].split(self.d_state)
            reads_B[0] *= factor
            reads_C[0] *= factor

    def has_identity_conv(self) -> bool:
        """Whether both convolutions pass their input through (up to their bias)."""
        return all(
            bool((conv.weight[:, 0, -1] == 1).all()) and not bool(conv.weight[:, 0, :-1].any())
            for conv in (self.conv1d, self.conv1d_b)
        )


def init_delta(linear: nn.Linear) -> None:
    """Mamba's initialisation: softplus(bias) log-uniform in 0.001..0.1, weights uniform in +-rank^-1/2."""
    bound = linear.in_features**-0.5
    nn.init.uniform_(linear.weight, -bound, bound)
    low, high = (math.log(value) for value in DELTA_RANGE)
    delta = torch.empty(linear.out_features).uniform_(low, high).exp().clamp(min=1e-4)
    with torch.no_grad():
        linear.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
