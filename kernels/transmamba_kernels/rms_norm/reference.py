"""The norm as its formula says, which is as quick as PyTorch makes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None, group_size: int) -> Tensor:
    """Arguments as in `transmamba_kernels.rms_norm`; y (..., D)."""
    dtype = compute_dtype(x, weight, gate)
    wide = x.to(dtype)
    if gate is not None:
        wide = wide * F.silu(gate.to(dtype))
    groups = wide.unflatten(-1, (-1, group_size)) if x.shape[-1] else wide.unsqueeze(-1)
    normed = groups * torch.rsqrt(groups.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normed.flatten(-2).to(x.dtype)
