"""Rotary positions (RoFormer, arXiv 2104.09864): q and k turned by angles that grow with the position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """Channel pairs (i, i + R/2) of the first R channels of a head are turned; the others stay as they are.

    frequencies: (R/2,) float32, angle a position of each pair, any scaling (llama3, linear, yarn) in them
    factor:      of cosine and sine (yarn's attention factor)
    kind:        its name, as transformers has it, for whoever describes the model
    """

    frequencies: Tensor
    factor: float = 1.0
    kind: str = "default"

    def __call__(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """x (B, H, L, P) at positions (B, L), 0 to L - 1 where None."""
        if positions is None:
            positions = torch.arange(x.shape[2], device=x.device)[None]
        return turned(x, *self.waves(positions))

    def waves(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine at positions (B, L), each (B, 1, L, R) float32, for `turned`."""
        # in float32 whatever the type of x: half precision cannot tell late positions apart
        with torch.autocast(positions.device.type, enabled=False):
            frequencies = self.frequencies.float().to(positions.device)
            angles = positions[:, None, :, None].float() * frequencies
            cos, sin = ((wave * self.factor).repeat(1, 1, 1, 2) for wave in (angles.cos(), angles.sin()))
        return cos, sin


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, L, P), its first R channels turned by these waves (B, 1, L, R)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    left, right = first.chunk(2, dim=-1)
    first = first * cos + torch.cat([-right, left], dim=-1) * sin
    return torch.cat([first, rest], dim=-1) if rest.shape[-1] else first
