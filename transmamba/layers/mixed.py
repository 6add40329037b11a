"""What a layer is asked for, and what a bidirectional mixer returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Want:
    """What a layer gives beside its stream.

    branches: the mixer's two directions, on `tokens` (positions) or on all
    alone:    only what the mixer adds to the stream, from that stream itself
    apart:    branches come through the mixer's output projection
    heads:    those of the mixer's inner tensors too that are made for a loss alone, head by head
    """

    branches: bool = False
    tokens: Tensor | None = None
    alone: bool = False
    apart: bool = False
    heads: bool = False


@dataclass
class Mixed:
    """One mixer pass.

    output: (B, L, D) the merged result
    half:   (B, M, E) half the difference of the two directions before the output projection W (D, E), on the
        M captured tokens; None where branches were not asked for. The projection is linear, so the forward
        branch is output + half Wᵀ and the backward branch output - half Wᵀ. (B, M, D), half Wᵀ itself, where
        the layer was told that its weights are apart.
    parts:  the mixer's inner tensors by name (B, C of each direction ...)
    """

    output: Tensor
    half: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


def kept(parts: dict[str, Tensor], names: frozenset[str]) -> dict[str, Tensor]:
    """Those of a mixer's inner tensors that a capture names; one that the mixer lacks is left out."""
    return {name: parts[name] for name in parts if name in names}
