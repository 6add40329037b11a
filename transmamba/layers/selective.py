"""A causal Mamba mixer (S6), and the same with a state-space model that selects nothing in its place (S4D).

Parameter names and shapes are those of state-spaces/mamba (arXiv 2312.00752); S4D: arXiv 2206.11893. Shapes:
B rows, L tokens, D channels, E = expand * D inner channels, N states, R rank of delta.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transmamba_kernels import causal_conv1d, selective_scan

from ..core.output import wide
from .mixed import Mixed

_DELTA_RANGE = (1e-3, 1e-1)


class GatedMixer(nn.Module):
    """out_proj(ssm(silu(conv(x))) silu(z)), x and z of one projection."""

    def __init__(self, dim: int, *, expand: int, d_conv: int) -> None:
        super().__init__()
        self.inner = expand * dim
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, d_conv, groups=self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def convolved(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """x behind its convolution, and z, both (B, L, E), of u (B, L, D)."""
        x, z = self.in_proj(u).chunk(2, dim=-1)
        return causal_conv1d(x, self.conv1d.weight[:, 0], self.conv1d.bias, activation="silu"), z


class SelectiveMixer(GatedMixer):
    """Mamba's."""

    def __init__(self, dim: int, *, expand: int = 2, d_state: int = 16, d_conv: int = 4) -> None:
        super().__init__(dim, expand=expand, d_conv=d_conv)
        self.rank, self.d_state = math.ceil(dim / 16), d_state
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        states = torch.arange(1, d_state + 1, dtype=torch.float32).repeat(self.inner, 1)
        self.A_log = nn.Parameter(states.log())
        self.D = nn.Parameter(torch.ones(self.inner))
        self.begin_delta_()

    @torch.no_grad()
    def begin_delta_(self) -> None:
        """Steps between 1/1000 and 1/10."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        low, high = (math.log(bound) for bound in _DELTA_RANGE)
        steps = torch.empty(self.inner).uniform_(low, high).exp().clamp_min(1e-4)
        self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # softplus undone

    def forward(self, u: Tensor) -> Mixed:
        """u (B, L, D)"""
        x, z = self.convolved(u)
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
        )
        return Mixed(self.out_proj(y), parts={"B": B, "C": C})


class S4DMixer(GatedMixer):
    """Mamba's with S4D in the place of the selective scan: the same decays and steps at every token, as a
    convolution over the whole row.

    dropout: share of what S4D makes that is dropped, whole channels of a row at a time
    """

    def __init__(
        self, dim: int, *, expand: int = 2, d_state: int = 16, d_conv: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__(dim, expand=expand, d_conv=d_conv)
        half = max(1, d_state // 2)  # complex states come in pairs
        low, high = (math.log(bound) for bound in _DELTA_RANGE)
        self.log_dt = nn.Parameter(torch.empty(self.inner).uniform_(low, high))
        self.C = nn.Parameter(torch.randn(self.inner, half, 2) * 0.5**0.5)
        self.log_A_real = nn.Parameter(torch.full((self.inner, half), math.log(0.5)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(half, dtype=torch.float32).repeat(self.inner, 1))
        self.D = nn.Parameter(torch.randn(self.inner))
        self.dropout = dropout

    def kernel(self, length: int) -> Tensor:
        """(E, L) of the convolution: 2 Re(sum over states of C (exp(dt A) - 1) / A exp(dt A l))."""
        A = torch.complex(-wide(self.log_A_real).exp(), wide(self.A_imag))
        step = wide(self.log_dt).exp()[:, None] * A
        places = torch.arange(length, device=step.device)
        C = torch.view_as_complex(wide(self.C).contiguous()) * step.exp().sub(1) / A
        return 2 * torch.einsum("en,enl->el", C, (step[..., None] * places).exp()).real

    def forward(self, u: Tensor) -> Mixed:
        """u (B, L, D)"""
        x, z = self.convolved(u)
        length, y = x.shape[1], wide(x)
        twice = 2 * length  # circular otherwise
        spectrum = torch.fft.rfft(y, n=twice, dim=1) * torch.fft.rfft(self.kernel(length).mT, n=twice, dim=0)
        y = torch.fft.irfft(spectrum, n=twice, dim=1)[:, :length] + y * wide(self.D)
        y = F.dropout1d(y.mT, self.dropout, self.training).mT if self.dropout else y
        return Mixed(self.out_proj(y.to(x.dtype) * F.silu(z)))
