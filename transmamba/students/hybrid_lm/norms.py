"""The norms of a hybrid's layers, rounded where transformers' are, and the gate of their MLPs.

What lies between matrix products are functions of tensors: torch.compile makes one kernel of each, and shares
it among all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.output import autocast_type, wide


def rms_norm(x: Tensor, weight: Tensor, eps: float, to: torch.dtype | None) -> Tensor:
    """x / sqrt(mean(x²) + eps) in float32 or wider, back in x's type times the weight, as in Llama.

    to: what it is rounded to then
    """
    if x.dtype == weight.dtype and x.element_size() >= 4:
        made = F.rms_norm(x, x.shape[-1:], weight, eps)
    else:
        made = weight * F.rms_norm(wide(x), x.shape[-1:], None, eps).to(x.dtype)
    return made if to is None else made.to(to)


def gated_norm(x: Tensor, z: Tensor, weight: Tensor, group: int, eps: float) -> Tensor:
    """RMSNorm of x silu(z) over each group's channels; x, z (..., H P), the same, in x's type."""
    gated = (wide(x) * F.silu(wide(z))).unflatten(-1, (-1, group))
    return weight * F.rms_norm(gated, (group,), None, eps).flatten(-2).to(x.dtype)


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function through torch.compile: one for all modules that call it."""
    return torch.compile(function)


class Between(nn.Module):
    """A module that does one of these functions.

    run: the function, or what torch.compile made of it
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = self.run = function

    def fuse(self) -> None:
        self.run = compiled(self.function)


class GatedNorm(Between):
    """RMSNorm of x silu(z) over each group's channels."""

    def __init__(self, channels: int, group: int, eps: float) -> None:
        super().__init__(gated_norm)
        self.weight = nn.Parameter(torch.ones(channels))
        self.group, self.eps = group, eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z (..., H P) -> the same, in x's type; at least float32 within, as in transformers."""
        return self.run(x, z, self.weight, self.group, self.eps)


class RMSNorm(Between):
    """x / sqrt(mean(x²) + eps) times the weight.

    multiplied: nothing but matrix products reads it. Under autocast it is rounded as they round it, once for
        all of them
    """

    def __init__(self, width: int, eps: float, multiplied: bool = False) -> None:
        super().__init__(rms_norm)
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.multiplied = eps, multiplied

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.weight, self.eps, autocast_type(x.device.type) if self.multiplied else None)


class GatedSilu(Between):
    """silu(gate) * up."""

    def __init__(self) -> None:
        super().__init__(gated_silu)

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.run(gate, up)
