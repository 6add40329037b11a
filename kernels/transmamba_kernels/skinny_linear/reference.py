"""As PyTorch has it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def skinny_linear(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    """Arguments as in `transmamba_kernels.skinny_linear`; y (..., N)."""
    product = F.linear(x, weight)
    return product if residual is None else residual + product
