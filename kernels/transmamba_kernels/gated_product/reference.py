"""As PyTorch has it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..rms_norm import reference as norm
from ..skinny_linear import reference as skinny


def gated_product(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Arguments as in `transmamba_kernels.gated_product`; y (..., N)."""
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


def normed_gated_product(
    x: Tensor, weight: Tensor, residual: Tensor, norm_weight: Tensor, eps: float, gate: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.normed_gated_product`; stream (..., N), y (..., F)."""
    stream = skinny.skinny_linear(x, weight, residual)
    return stream, gated_product(norm.rms_norm(stream, norm_weight, eps, None, stream.shape[-1]), gate, up)
