"""What adapters add within a mixer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor


@dataclass
class Inside:
    """offsets:   h' (D, N) by direction: C_t . h' is added to what is read out of the state at every step
    shifts:    y' (D,) by direction (`""` alone where both share it), added there too
    beside:    functions from the gated (B, L, D) to what out_proj's (B, L, d) is added to
    looked_up: of a table (V, d): up (V, r) and down (r, d), whose product is added to it
    """

    offsets: dict[str, Tensor] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    beside: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    looked_up: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def add(self, table: str, key: str, tensor: Tensor) -> None:
        """To a sum: several adapters may be active at once."""
        sums: dict[str, Tensor] = getattr(self, table)
        sums[key] = sums[key] + tensor if key in sums else tensor

    def shifted(self, y: Tensor, suffix: str = "") -> Tensor:
        """y (..., D) with y'."""
        return y + self.shifts[suffix].to(y.dtype) if suffix in self.shifts else y

    def projected(self, project: Callable[[Tensor], Tensor], gated: Tensor) -> Tensor:
        """out_proj of the gated (B, L, D), and what stands beside it."""
        output = project(gated)
        for branch in self.beside:
            output = output + branch(gated).to(output.dtype)
        return output

    def read(self, C: Tensor, suffix: str = "") -> Tensor | None:
        """C_t . h' (B, L, D) of C (B, L, N), which all channels share; None where there is no h'."""
        offset = self._offset(C, suffix)
        return None if offset is None else F.linear(C, offset)

    def read_heads(self, C: Tensor, heads: int, suffix: str = "") -> Tensor | None:
        """C_t . h' (B, L, H, P) of C (B, L, G, N), where head h reads the group h G / H."""
        offset = self._offset(C, suffix)
        if offset is None:
            return None
        batch, length, groups, states = C.shape
        by_group = offset.view(groups, -1, states)  # (G, H / G * P, N)
        read = (C.transpose(1, 2) @ by_group.mT).transpose(1, 2)
        return read.reshape(batch, length, heads, -1)

    def _offset(self, C: Tensor, suffix: str) -> Tensor | None:
        """h' for the states of C (..., N): none for those that an additional scan has put before."""
        offset = self.offsets.get(suffix)
        return None if offset is None else F.pad(offset.to(C.dtype), (C.shape[-1] - offset.shape[-1], 0))
