"""A Mamba mixer with a state-space model that selects nothing in the place of the selective scan (S4D).

S4D: arXiv 2206.11893. Shapes: B rows, L tokens, D channels, E = expand * D inner channels, N states.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.output import wide
from .bidirectional import DELTA_RANGE
from .mamba1 import GatedMixer
from .mixed import Mixed


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
        low, high = (math.log(bound) for bound in DELTA_RANGE)
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

    def no_weight_decay(self) -> set[str]:
        """What the state-space model is made of, as in S4's own code; C decays."""
        return {"log_dt", "log_A_real", "A_imag"}

    def forward(self, u: Tensor) -> Mixed:
        """u (B, L, D)"""
        x, z = self.convolved(u)
        length, y = x.shape[1], wide(x)
        twice = 2 * length  # circular otherwise
        spectrum = torch.fft.rfft(y, n=twice, dim=1) * torch.fft.rfft(self.kernel(length).mT, n=twice, dim=0)
        y = torch.fft.irfft(spectrum, n=twice, dim=1)[:, :length] + y * wide(self.D)
        y = F.dropout1d(y.mT, self.dropout, self.training).mT if self.dropout else y
        return Mixed(self.out_proj(y.to(x.dtype) * F.silu(z)))
