"""A causal Mamba mixer (S6): as it is, and with masks, segments and experts in the place of some projections.

Parameter names and shapes are those of state-spaces/mamba (arXiv 2312.00752); experts within: the inner
variants of MoE-Mamba (arXiv 2401.04081). Shapes: B rows, L tokens, D channels, I = expand D inner channels,
N states, R rank of delta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transmamba_kernels import causal_conv1d, selective_scan

from ..core.output import Context, wide
from .bidirectional import init_delta
from .experts import SwitchLinear
from .mixed import Mixed

Projection = Literal["conv", "gate", "out"]


class SelectiveSSM(nn.Module):
    """The selective state-space model of `inner` channels. A class of it says when its parameters are
    made and begun: a seed draws them, and an optimizer's file counts them, in the order of that class."""

    inner: int

    def make_selection(self, dim: int, d_state: int) -> None:
        """Its parameters; `begin_selection_` fills all but x_proj's."""
        self.rank, self.d_state = math.ceil(dim / 16), d_state
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.empty(self.inner, d_state))
        self.D = nn.Parameter(torch.empty(self.inner))

    @torch.no_grad()
    def begin_selection_(self) -> None:
        """As in Mamba's own code: decays of 1 to N, D of 1, steps by `init_delta`."""
        init_delta(self.dt_proj)
        rates = torch.arange(1, self.d_state + 1, dtype=self.A_log.dtype, device=self.A_log.device)
        self.A_log.copy_(rates.log().expand_as(self.A_log))
        self.D.fill_(1)

    def no_weight_decay(self) -> set[str]:
        """As in Mamba's own code."""
        return {"A_log", "D"}

    def scanned(
        self, x: Tensor, z: Tensor, segments: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The scan of x, gated by z, both (B, L, I), and its B and C (B, L, N). The state begins anew where
        segments (B, L) change."""
        delta, B, C = self.x_proj(x).split([self.rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(
            x,
            F.linear(delta, self.dt_proj.weight),
            -wide(self.A_log).exp(),
            B,
            C,
            D=wide(self.D),
            z=z,
            delta_bias=wide(self.dt_proj.bias),
            delta_softplus=True,
            seq_idx=segments,
        )
        return y, {"B": B, "C": C}


class GatedMixer(nn.Module):
    """out_proj(ssm(silu(conv(x))) silu(z)), x and z of one projection."""

    def __init__(self, dim: int, *, expand: int, d_conv: int) -> None:
        super().__init__()
        self.inner = expand * dim
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, d_conv, groups=self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def convolved(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """x behind its convolution, and z, both (B, L, I), of u (B, L, D)."""
        x, z = self.in_proj(u).chunk(2, dim=-1)
        return causal_conv1d(x, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu"), z


class SelectiveMixer(GatedMixer, SelectiveSSM):
    """Mamba's, of rows that are whole."""

    def __init__(self, dim: int, *, expand: int = 2, d_state: int = 16, d_conv: int = 4) -> None:
        super().__init__(dim, expand=expand, d_conv=d_conv)
        self.make_selection(dim, d_state)
        self.begin_selection_()

    def forward(self, u: Tensor) -> Mixed:
        """u (B, L, D)"""
        y, parts = self.scanned(*self.convolved(u))
        return Mixed(self.out_proj(y), parts=parts)


class CausalMamba(SelectiveSSM):
    """out_proj(scan(silu(conv(x))) silu(z)), x and z of in_proj.

    inner: of the projections to the convolution, to the gate and out of the layer those that have experts;
        then the first two are `conv_proj` and `gate_proj`, in the place of in_proj
    experts: of each of these
    """

    def __init__(
        self,
        dim: int,
        *,
        expand: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        inner: Sequence[Projection] = (),
        experts: int = 0,
    ) -> None:
        super().__init__()
        self.inner = expand * dim

        def projection(name: Projection, into: int, outputs: int) -> nn.Module:
            if name in inner:
                return SwitchLinear(into, outputs, experts)
            return nn.Linear(into, outputs, bias=False)

        self.switched = tuple(inner)
        if inner:
            self.conv_proj = projection("conv", dim, self.inner)
            self.gate_proj = projection("gate", dim, self.inner)
        else:
            self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, d_conv, groups=self.inner)
        self.make_selection(dim, d_state)
        self.out_proj = projection("out", self.inner, dim)
        self.reset_()

    @torch.no_grad()
    def reset_(self) -> None:
        """As Mamba's own code begins; experts as theirs."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                module.reset_parameters()
            elif isinstance(module, SwitchLinear):
                module.reset_()
        self.begin_selection_()

    def forward(self, u: Tensor, context: Context = Context()) -> Mixed:  # noqa: B008
        """u (B, L, D) -> `Mixed`. A masked token adds nothing to the state; state and convolution begin anew
        where the segment changes. Among its parts are the records of routers."""
        mask, parts = context.mask, dict[str, Tensor]()
        real = None if mask is None else mask.unsqueeze(-1)
        x, z = self._read(u if real is None else u.masked_fill(~real, 0), mask, parts)
        x = causal_conv1d(
            x, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu", seq_idx=context.segments
        )
        if real is not None:
            x = x.masked_fill(~real, 0)
        y, scan = self.scanned(x, z, context.segments)
        made = self._through(self.out_proj, "out", y, mask, parts)
        return Mixed(made, parts=scan | parts)

    def _read(self, u: Tensor, mask: Tensor | None, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """x and z (B, L, I)."""
        if not self.switched:
            x, z = self.in_proj(u).chunk(2, dim=-1)
            return x, z
        x = self._through(self.conv_proj, "conv", u, mask, parts)
        return x, self._through(self.gate_proj, "gate", u, mask, parts)

    def _through(
        self, projection: Any, name: str, u: Tensor, mask: Tensor | None, parts: dict[str, Tensor]
    ) -> Tensor:
        if name not in self.switched:
            made: Tensor = projection(u)
            return made
        made, routed = projection(u, mask)
        parts |= routed.parts(f"_{name}")
        return made
