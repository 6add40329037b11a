"""The one system of equations that all starts solve."""

from __future__ import annotations

import torch
from torch import Tensor

# in units of the mean square of a channel, or of a head
RIDGE = 1e-3


def ridge(square: Tensor, along: Tensor) -> Tensor:
    """The factors (H,) with which things of Gram matrix `square` add up to something, `along` it; 0 of what
    is nothing."""
    size = square.diagonal()
    scale = torch.where(size > 0, size, torch.inf).rsqrt()
    small = RIDGE * torch.eye(len(size), dtype=size.dtype, device=size.device)
    return torch.linalg.solve(square * scale[:, None] * scale + small, along * scale) * scale
