"""What adapters add within a mixer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.output import Context
from ...errors import UserError
from ...layers.insertion import Insertion, Where


@dataclass
class Inside:
    """offsets:   h' (D, N) by direction: C_t . h' is added to what is read out of the state at every step
    shifts:    y' (D,) by direction (`""` alone where both share it), added there too
    beside:    functions from the gated (B, L, D) to what out_proj's (B, L, d) is added to
    looked_up: of a table (V, d): up (V, r) and down (r, d), whose product is added to it
    begins:    h0 (D, N) by direction: the state in front of the first token, for a cache that is empty
    affixes:   by direction: where tokens (t, W) stand among those that the input projection has made
    """

    offsets: dict[str, Tensor] = field(default_factory=dict)
    shifts: dict[str, Tensor] = field(default_factory=dict)
    beside: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    looked_up: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    begins: dict[str, Tensor] = field(default_factory=dict)
    affixes: dict[str, tuple[Where, Tensor]] = field(default_factory=dict)

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
        return None if offset is None else _behind(offset.to(C.dtype), C.shape[-1])

    def start(self, states: int, suffix: str = "") -> Tensor | None:
        """h0 (D, states), likewise."""
        first = self.begins.get(suffix)
        return None if first is None else _behind(first, states)

    def start_of(self, rows: int, shape: tuple[int, ...], states: int) -> Tensor | None:
        """h0 of every row (B, *shape, states), as scans take it."""
        first = self.start(states)
        return None if first is None else first.reshape(*shape, states).expand(rows, *[-1] * (len(shape) + 1))

    def affix(self, where: Where, suffix: str, tokens: Tensor) -> None:
        """Tokens behind those that other adapters have put there."""
        if suffix in self.affixes:
            there, before = self.affixes[suffix]
            if there != where:
                raise UserError(
                    f"two active adapters put tokens in different places, {there!r} and {where!r}; use one"
                )
            tokens = torch.cat([before, tokens])
        self.affixes[suffix] = where, tokens

    def widened(self, inner: int, groups: int, states: int, heads: int) -> Tensor:
        """The affix (t, W) as a Mamba-2 with so many states projects it: 0 for states that are new."""
        tokens = self.affixes[""][1]
        narrow = (tokens.shape[-1] - 2 * inner - heads) // 2
        front, *parts, delta = tokens.split([2 * inner, narrow, narrow, heads], dim=-1)
        grouped = (part.unflatten(-1, (groups, -1)) for part in parts)
        B, C = (F.pad(part, (states - part.shape[-1], 0)).flatten(-2) for part in grouped)
        return torch.cat([front, B, C, delta], dim=-1)

    def prefix(self, hidden: Tensor, context: Context) -> Insertion | None:
        """Where the affixes of one direction stand before each text of hidden (B, L, d)."""
        if "" not in self.affixes:
            return None
        length, tokens = hidden.shape[1], len(self.affixes[""][1])
        made = functools.partial(Insertion.before, length, tokens, context, hidden.device)
        if context.segments is None:
            return made()
        return context.once(("affix", length, tokens), made)  # which waits for the device


def _behind(tensor: Tensor, states: int) -> Tensor:
    """(..., n) as (..., states), behind zeros. Where none are to be added nothing is copied, as padding would
    at every token.
    """
    more = states - tensor.shape[-1]
    return F.pad(tensor, (more, 0)) if more else tensor
