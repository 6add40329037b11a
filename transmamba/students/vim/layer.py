"""One layer of a Vim: one residual sublayer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from ...layers.bidirectional import BidirectionalMamba
from ...layers.mixed import Mixed, Want

PLAIN = Want()


class VimLayer(nn.Module):
    """x + mixer(norm(x)), the residual stream in float32 whatever the mixer's precision."""

    def __init__(self, dim: int, drop_path: float, **mixer: Any) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = BidirectionalMamba(dim, **mixer)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, want: Want = PLAIN) -> tuple[Tensor, Mixed]:
        """The stream (B, L, D) after this layer, or what its mixer alone adds, and the mixer's own record."""
        mixed = self.mixer(self.norm(x), branches=want.branches, tokens=want.tokens)
        if want.alone:
            return mixed.output, mixed
        survives = self.drop_path(x.new_ones(len(x), 1, 1))  # one draw for the output and its branches
        if mixed.half is not None:
            mixed.half = mixed.half * survives.to(mixed.half.dtype)
            if want.apart:
                mixed.half = F.linear(mixed.half, self.mixer.written().to(mixed.half.dtype))
        return x + survives * mixed.output, mixed

    def written(self, want: Want) -> Tensor | None:
        """The matrix (D, E) through which the mixer's `half` is still to go; None where it has gone."""
        return None if want.apart else self.mixer.written()
