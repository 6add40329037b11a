"""The norms of a hybrid's layers, rounded where transformers' are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def wide(x: Tensor) -> Tensor:
    """In float32, or wider where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class GatedNorm(nn.Module):
    """RMSNorm of x silu(z) over each group's channels."""

    def __init__(self, channels: int, group: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.group, self.eps = group, eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z (..., H P) -> the same, in x's type; at least float32 within, as in transformers."""
        gated = (wide(x) * F.silu(wide(z))).unflatten(-1, (-1, self.group))
        return self.weight * F.rms_norm(gated, (self.group,), None, self.eps).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) in float32 or wider, back in x's type times the weight, as in Llama."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype and x.element_size() >= 4:
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return self.weight * F.rms_norm(wide(x), x.shape[-1:], None, self.eps).to(x.dtype)
