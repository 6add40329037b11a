"""Where each token of a stream comes from, so that two models' tokens can be compared one to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Match:
    """Positions (M,) int64 of the tokens that two layouts share: `here` in one, `there` in the other."""

    here: Tensor
    there: Tensor


@runtime_checkable
class Layout(Protocol):
    """item: what a loss over this stream counts, `samples` where every row has the same tokens, else
    `tokens`."""

    item: ClassVar[str]

    def match(self, other: Layout) -> Match | None:
        """The shared tokens in the order of `other`; None where both have the same ones in the same order,
        and a mask says which are real. Raises ValueError for layouts that cannot be compared."""


class _Fixed:
    """Patches in raster order, special tokens between them: the same positions in every row."""

    item: ClassVar[str] = "samples"
    special: tuple[tuple[str, int], ...]

    @property
    def num_patches(self) -> int:
        raise NotImplementedError

    @property
    def length(self) -> int:
        return self.num_patches + len(self.special)

    @property
    def patches(self) -> list[int]:
        """Sequence positions of the patch tokens, in raster order."""
        taken = {position for _, position in self.special}
        return [position for position in range(self.length) if position not in taken]

    def _pair(self, other: _Fixed) -> Match:
        here = dict(self.special)
        pairs = [(here[name], position) for name, position in other.special if name in here]
        pairs += list(zip(self.patches, other.patches, strict=True))
        pairs.sort(key=lambda pair: pair[1])
        source, wanted = zip(*pairs, strict=True)
        return Match(torch.tensor(source), torch.tensor(wanted))


@dataclass(frozen=True)
class Grid(_Fixed):
    """The patches of an image, `rows` by `columns`; `special` names the tokens that are no patch and their
    place in the sequence."""

    rows: int
    columns: int
    special: tuple[tuple[str, int], ...] = ()

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def num_patches(self) -> int:
        return self.rows * self.columns

    def match(self, other: Layout) -> Match:
        """Raises ValueError when the patch grids differ: the aligner resizes them before it asks."""
        if not isinstance(other, Grid) or self.grid != other.grid:
            raise ValueError(f"patch grids differ: {self} and {other}")
        return self._pair(other)


@dataclass(frozen=True)
class Frames(_Fixed):
    """The patches of `times` frames, one after the other, each a grid of `rows` by `columns`."""

    times: int
    rows: int
    columns: int
    special: tuple[tuple[str, int], ...] = ()

    @property
    def num_patches(self) -> int:
        return self.times * self.rows * self.columns

    def match(self, other: Layout) -> Match:
        shape = (self.times, self.rows, self.columns)
        if not isinstance(other, Frames) or shape != (other.times, other.rows, other.columns):
            raise ValueError(f"frames differ: {self} and {other}")
        return self._pair(other)


@dataclass(frozen=True)
class Sequence:
    """Text: rows of any length, whose real tokens a mask names. Teacher and student read the same ones."""

    item: ClassVar[str] = "tokens"

    def match(self, other: Layout) -> None:
        if type(other) is not type(self):
            raise ValueError(f"a text stream cannot be compared with {other}")


@dataclass(frozen=True)
class Spliced:
    """Text with the tokens of other streams between its own: `parts` names those streams."""

    parts: tuple[str, ...]
    item: ClassVar[str] = "tokens"

    def match(self, other: Layout) -> None:
        if self != other:
            raise ValueError(f"spliced streams differ: {self} and {other}")
