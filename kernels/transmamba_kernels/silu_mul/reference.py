"""As PyTorch has it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Arguments as in `transmamba_kernels.silu_mul`; y (..., D)."""
    return F.silu(gate) * up
