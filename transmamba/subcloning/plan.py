"""What a student's plan says of each of its tensors, and which teacher sublayer stands behind each of its
layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

# how a tensor was taken from the teacher's: as it is; in another order; some positions more than once;
# interpolated to another patch or grid; without some positions. Where several happened, the last one counts
Kind = Literal["copied", "permuted", "repeated", "resampled", "sliced"]


@dataclass(frozen=True, kw_only=True)
class Take:
    """One student tensor (or the part `into` of it) taken from one teacher tensor.

    index: per dimension of the source, the positions to take (repeats allowed) or None for all of them
    into:  a slice of its first axis, or of several
    scale: a factor, or one per kept position of the last dimension
    made:  what the plan itself did to the source before that
    layer: the student layer it belongs to; None for embeddings, final norm and head
    """

    target: str
    source: str
    tensor: Tensor
    index: tuple[Tensor | None, ...] = ()
    into: slice | tuple[int | slice, ...] | None = None
    scale: Tensor | float = 1.0
    layer: int | None = None
    made: Kind = "copied"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A teacher tensor for which the student has no place; `layer` as in `Take`."""

    source: str
    why: str
    layer: int | None = None


def depth_map(num_layers: int, num_sources: int) -> list[int]:
    """Source sublayer for each of `num_layers` student layers: repeated in order where the student is deeper;
    where it is shallower, taken from the middle, for both ends matter most (Samragh et al., arXiv
    2312.09299)."""
    if num_layers >= num_sources:
        return [layer * num_sources // num_layers for layer in range(num_layers)]
    head = (num_layers + 1) // 2
    return [*range(head), *range(num_sources - (num_layers - head), num_sources)]
