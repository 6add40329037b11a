"""As PyTorch has it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gated_product(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Arguments as in `transmamba_kernels.gated_product`; y (..., N)."""
    return F.silu(F.linear(x, gate)) * F.linear(x, up)
