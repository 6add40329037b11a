"""Where adapters reach a student that their layers do not see: its class token and positions, and tokens that
are put into its stream.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from torch import Tensor

from ..core.output import Context
from ..layers.insertion import Insertion


class Adapting(Protocol):
    """An adapter at the start of a stream."""

    def embedding(self) -> contextlib.AbstractContextManager[Any]:
        """The student's parameters as they are to be while it embeds."""

    def insertion(self, x: Tensor, context: Context) -> tuple[Insertion, Tensor] | None:
        """Of a stream x (B, L, D): where tokens (P, D) come in; None without any."""


class Adaptable:
    """A student, or a tower of one; `adapting` is None without an adapter there."""

    adapting: Adapting | None = None

    def embedding(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.adapting is None else self.adapting.embedding()

    def opened(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Insertion | None]:
        """A stream (B, L, D) with the tokens that are put into it, and where they stand."""
        found = None if self.adapting is None else self.adapting.insertion(x, context or Context())
        return (x, None) if found is None else (found[0].place(x, found[1]), found[0])


def own(x: Tensor, put: Insertion | None) -> Tensor:
    """Of (B, L', ...) a stream's own tokens."""
    return x if put is None else put.drop(x)


def own_parts(parts: dict[str, Tensor], put: Insertion | None) -> dict[str, Tensor]:
    """Of a mixer's inner tensors, those of attention's heads (B, H, L', N), the others (B, L', ...)."""
    if put is None:
        return parts
    by_head = {name: part.transpose(1, 2) for name, part in parts.items() if name in ("q", "k")}
    dropped = {name: put.drop(part) for name, part in (parts | by_head).items()}
    return {name: part.transpose(1, 2) if name in by_head else part for name, part in dropped.items()}
