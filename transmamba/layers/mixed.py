"""What a bidirectional mixer returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Mixed:
    """One mixer pass.

    output: (B, L, D) the merged result
    spread: (B, M, D) half the difference of the two directions' results on the M captured tokens, so that the
        forward branch is output + spread and the backward branch output - spread (the output projection is
        linear, so one projection serves both); None where branches were not asked for
    parts:  the mixer's inner tensors by name (B, C of each direction ...)
    """

    output: Tensor
    spread: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)
