"""What a bidirectional mixer returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Mixed:
    """One mixer pass.

    output: (B, L, D) the merged result
    half:   (B, M, E) half the difference of the two directions before the output projection W (D, E), on the
        M captured tokens; None where branches were not asked for. The projection is linear, so the forward
        branch is output + half Wᵀ and the backward branch output - half Wᵀ.
    parts:  the mixer's inner tensors by name (B, C of each direction ...)
    """

    output: Tensor
    half: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)
