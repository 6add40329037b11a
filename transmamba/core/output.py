"""What losses may read, the `Output`s of teacher and student, and what they return: `Term(sum, parts)`.

Shapes: B rows, L tokens, D channels, K classes, V vocabulary, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import Layout

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Capture:
    """Which intermediate results of one stream a forward pass keeps; nothing is kept that no loss asked for.

    hidden:   residual stream after layer k (of a teacher: after sublayer k), (B, L, D)
    branches: forward and backward branch features of student layer k
    mixers:   layer or sublayer -> names of what its mixer took in and made: of a teacher `input`, `output`,
        `q`, `k`, `values` (what the output projection reads), `neurons`; of a student `output`, `B`, `C` ...
    tokens:   positions to keep in `branches` (they cost a projection each); None keeps all
    apart:    branches come through the mixer's output projection, for nothing outside a layer may read its
        weights
    """

    hidden: frozenset[int] = frozenset()
    branches: frozenset[int] = frozenset()
    mixers: Mapping[int, frozenset[str]] = field(default_factory=dict)
    tokens: Tensor | None = None
    apart: bool = False

    def union(self, other: Capture) -> Capture:
        """What either keeps. Raises ValueError where they ask for different tokens."""
        if self.tokens is not None and other.tokens is not None and self.tokens is not other.tokens:
            raise ValueError("two captures ask for different token subsets")
        mixers = {
            k: self.mixers.get(k, frozenset()) | other.mixers.get(k, frozenset())
            for k in sorted(self.mixers.keys() | other.mixers.keys())
        }
        return Capture(
            hidden=self.hidden | other.hidden,
            branches=self.branches | other.branches,
            mixers=mixers,
            tokens=other.tokens if self.tokens is None else self.tokens,
            apart=self.apart or other.apart,
        )

    def on(self, tokens: Tensor | None) -> Capture:
        """The same, with branches on these positions alone."""
        return replace(self, tokens=tokens)


# what is kept of each stream; a stream that is not named keeps nothing
Captures = Mapping[str, Capture]


def union(captures: Iterator[Captures] | list[Captures]) -> dict[str, Capture]:
    """What any of them keeps, by stream."""
    found: dict[str, Capture] = {}
    for each in captures:
        for stream, capture in each.items():
            found[stream] = found[stream].union(capture) if stream in found else capture
    return found


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
class Stream:
    """One tower's tokens: where they come from, which are real (`mask` (B, L), None for all), what was
    kept."""

    layout: Layout
    mask: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    branches: dict[int, Branches] = field(default_factory=dict)
    mixers: dict[int, dict[str, Tensor]] = field(default_factory=dict)


@dataclass
class Logits:
    """Logits that are made when they are asked for: `head(hidden)`, whole or by rows.

    hidden: the last residual stream, (B, L, D)
    head:   from it to (B, K) class logits, or from (..., D) to (..., V)
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    _made: Tensor | None = field(default=None, repr=False)

    def __call__(self) -> Tensor:
        """All of them, made once however many ask."""
        if self._made is None:
            self._made = self.head(self.hidden)
        return self._made

    def chunks(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """(rows, V) logits of so many tokens at a time, and which of the B * L they are, for a head that
        reads each token by itself."""
        flat = self.hidden.flatten(0, -2)
        for start in range(0, len(flat), rows):
            part = slice(start, min(start + rows, len(flat)))
            yield part, self.head(flat[part])


def wide(x: Tensor) -> Tensor:
    """In float32, in which softmaxes, norms and step sizes are safe; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def autocast_type(kind: str) -> torch.dtype | None:
    """What products on this type of device are rounded to; None without autocast."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


@dataclass
class Output:
    """One forward pass of a teacher or a student.

    streams:    by name: image, text, decoder
    logits:     of classes, or of the vocabulary; None for a model that gives none
    embeddings: one vector a row and tower, (B, E)
    scalars:    learnt numbers that losses read: `scale`, `bias`
    """

    streams: dict[str, Stream] = field(default_factory=dict)
    logits: Logits | None = None
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Tensor] = field(default_factory=dict)

    @property
    def stream(self) -> Stream:
        """The only stream of a model that has one."""
        (stream,) = self.streams.values()
        return stream


@dataclass
class Term:
    """A loss before it is averaged: the trainer divides by the step's count of the loss's item over all ranks
    and micro-batches.

    sum:   scalar tensor, the loss summed over the items of this micro-batch
    parts: optional detached sums of per-layer similarity, for logging and adaptive weights
    """

    sum: Tensor
    parts: Tensor | None = None

    def detached(self) -> Term:
        """The same numbers, without what they were computed from."""
        return Term(self.sum.detach(), self.parts)


@dataclass(frozen=True)
class Context:
    """What a layer may need beside its stream.

    mask:      (B, L) bool, True where a token is real; None for all
    segments:  (B, L) int32, which document of a packed row a token belongs to; None for one
    positions: (B, L) int64, each token's place in its own document; None for its place in the row
    """

    mask: Tensor | None = None
    segments: Tensor | None = None
    positions: Tensor | None = None

    def once(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """What `make` makes of this context alone, made by the first layer that asks. It is no field: what
        `replace` makes begins anew."""
        made: dict[Hashable, Any] = self.__dict__.setdefault("_made", {})
        if key not in made:
            made[key] = make()
        found: _Made = made[key]
        return found

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor], reads: str = "text") -> Context:
        """Of the input that a tower reads: of text (B, L) its mask, its segments, and each token's place in
        its own document. Padding before a text does not move it. Of any other input, an empty one."""
        if reads != "text" or reads not in inputs:
            return cls()
        text = inputs["text"]
        mask, segments = inputs.get("text_mask"), inputs.get("text_segment")
        places = torch.arange(text.shape[1], device=text.device).expand_as(text)
        if segments is not None:
            places = places - torch.where(begins_of(segments), places, 0).cummax(dim=1).values
        elif mask is not None:
            places = (mask.long().cumsum(dim=1) - 1).clamp_min(0)
        return cls(mask=mask, segments=segments, positions=places)


def begins_of(segments: Tensor) -> Tensor:
    """(B, L) bool, whether a document begins at a token, of `Context.segments`."""
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return begins
