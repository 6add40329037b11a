"""What losses may read: `Output`s of teacher and student, and what they return: `Term(sum, count)`.

Shapes: B images, L tokens, D channels, K classes, H heads, P channels a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Where each token of a sequence comes from.

    `special` names the tokens that are no image patch and their position in the sequence; all others are the
    patches of `grid` (rows, columns) in raster order.
    """

    grid: tuple[int, int]
    special: tuple[tuple[str, int], ...] = ()

    @property
    def length(self) -> int:
        return self.grid[0] * self.grid[1] + len(self.special)

    @property
    def patches(self) -> list[int]:
        """Sequence positions of the patch tokens, in raster order."""
        taken = {position for _, position in self.special}
        return [position for position in range(self.length) if position not in taken]

    def match(self, target: TokenLayout) -> tuple[Tensor, Tensor]:
        """Positions here and positions in `target` of the tokens that both have, in the target's order.

        Raises ValueError when the patch grids differ: the aligner resizes them before it asks.
        """
        if self.grid != target.grid:
            raise ValueError(f"patch grids differ: {self.grid} and {target.grid}")
        here = dict(self.special)
        pairs = [(here[name], position) for name, position in target.special if name in here]
        pairs += list(zip(self.patches, target.patches, strict=True))
        pairs.sort(key=lambda pair: pair[1])
        source, wanted = zip(*pairs, strict=True)
        return torch.tensor(source), torch.tensor(wanted)


@dataclass(frozen=True)
class Capture:
    """Which intermediate results a forward pass should keep, by block index.

    hidden:   residual stream after block k, (B, L, D)
    branches: forward and backward branch features of student layer k, each (B, L, D); their mean is
    `hidden[k]`
    mixers:   what the sequence mixer of block k saw and made (teacher: q, k, input, output; student: B, C
    ...)
    tokens:   positions to keep in `branches` (they cost a projection each); None keeps all
    ranks:    of a teacher, each token's place (L,) in the student's sequence: asks its mixers for
        `attention_back`, what attention adds from the token itself and those before it there, half its bias
        included
    """

    hidden: frozenset[int] = frozenset()
    branches: frozenset[int] = frozenset()
    mixers: frozenset[int] = frozenset()
    tokens: Tensor | None = None
    ranks: Tensor | None = None

    def union(self, other: Capture) -> Capture:
        if self.tokens is not None and other.tokens is not None and self.tokens is not other.tokens:
            raise ValueError("two captures ask for different token subsets")
        return Capture(
            hidden=self.hidden | other.hidden,
            branches=self.branches | other.branches,
            mixers=self.mixers | other.mixers,
            tokens=other.tokens if self.tokens is None else self.tokens,
            ranks=other.ranks if self.ranks is None else self.ranks,
        )


@dataclass(frozen=True)
class Branches:
    """Forward and backward branch features of one layer: merged + half Wᵀ and merged - half Wᵀ, each
    (B, M, D); unpacks as that pair. Kept apart, so that whoever projects them on can fold W into it.

    merged (B, M, D) the layer's output; half (B, M, E) half the directions' difference before the mixer's
    output projection, None for a layer without directions; weight W (D, E)
    """

    merged: Tensor
    half: Tensor | None = None
    weight: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        if self.half is None:
            yield from (self.merged, self.merged)
            return
        spread = self.half if self.weight is None else F.linear(self.half, self.weight.to(self.half.dtype))
        yield from (self.merged + spread, self.merged - spread)


@dataclass
class Output:
    """One forward pass of a teacher or a student."""

    logits: Tensor | None
    layout: TokenLayout
    hidden: dict[int, Tensor] = field(default_factory=dict)
    branches: dict[int, Branches] = field(default_factory=dict)
    mixers: dict[int, dict[str, Tensor]] = field(default_factory=dict)


@dataclass
class Term:
    """A loss before it is averaged: the trainer divides by the count over all ranks and micro-batches.

    sum:   scalar tensor, the loss summed over the items of this micro-batch
    count: how many items that was (a number the batch alone determines)
    parts: optional detached (M, N) or (N,) sums of per-layer similarity, for logging and adaptive weights
    """

    sum: Tensor
    count: int
    parts: Tensor | None = None

    def detached(self) -> Term:
        """The same numbers, without what they were computed from."""
        return Term(self.sum.detach(), self.count, self.parts)
