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
        # in float32 whatever the type of x: half precision cannot tell late positions apart
        with torch.autocast(x.device.type, enabled=False):
            angles = positions[:, None, :, None].float() * self.frequencies.float().to(x.device)
            cos, sin = (
                (wave * self.factor).repeat(1, 1, 1, 2).to(x.dtype) for wave in (angles.cos(), angles.sin())
            )
        turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned
