"""Captions as a reader finds them, as they are kept in memory, and what was left out on the way."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UserError

logger = logging.getLogger("transmamba.data")

EMPTY = "without a caption"


def texts(value: Any, where: str, what: str = "caption") -> tuple[str, ...]:
    """The captions, or `what` they are called, in a cell, which holds a text, a list of texts or nothing:
    without the space around them, and without those that are empty then. Raises UserError, with `where`, for
    anything else."""
    if value is None:
        return ()
    if isinstance(value, str):
        # A lone half of a surrogate pair, which JSON may hold, is no text that a tokenizer takes.
        stripped = value.encode("utf-8", "replace").decode("utf-8").strip()
        return (stripped,) if stripped else ()
    if isinstance(value, list | tuple):
        return tuple(text for item in value for text in texts(item, where, what))
    raise UserError(f"{where}: {value!r:.60} is no {what}; write text or a list of texts")


@dataclass(frozen=True)
class Captions:
    """The captions of N pictures, M in all, packed: lists of strings would be copied by every data worker as
    soon as their reference counts change.

    text:   (bytes,) uint8, one after another in UTF-8
    bounds: (M + 1,) int64, where each begins in `text`, and the end
    first:  (N + 1,) int64, each picture's first caption, and the end
    """

    text: npt.NDArray[np.uint8]
    bounds: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]

    @classmethod
    def pack(cls, lists: Iterable[Sequence[str]]) -> Captions:
        text, lengths, counts = bytearray(), [0], [0]
        for captions in lists:
            for caption in captions:
                encoded = caption.encode()
                text += encoded
                lengths.append(len(encoded))
            counts.append(len(captions))
        return cls(
            np.frombuffer(bytes(text), dtype=np.uint8),
            np.cumsum(lengths, dtype=np.int64),
            np.cumsum(counts, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.first) - 1

    def of(self, index: int) -> tuple[str, ...]:
        """The captions of a picture. Raises IndexError beyond the last one."""
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        bounds = self.bounds[self.first[index] : self.first[index + 1] + 1].tolist()
        return tuple(self.text[start:end].tobytes().decode() for start, end in itertools.pairwise(bounds))


class LeftOut:
    """Pairs, or what else a split has, that are left out of it, by reason, and the first of each."""

    def __init__(self, what: str = "pairs") -> None:
        self.what = what
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """count: how many. example: where the first of them is."""
        self._count[reason] += count
        self._first.setdefault(reason, example)

    @property
    def total(self) -> int:
        return self._count.total()

    def __str__(self) -> str:
        """`12 without a caption (first: line 3), 2 whose picture is not there (first: a.jpg)`."""
        return ", ".join(f"{count} {reason} (first: {first})" for reason, first, count in self.entries())

    def entries(self) -> list[tuple[str, str, int]]:
        """What `add` makes the same of again: reason, first example, pairs; the most frequent first."""
        return [(reason, self._first[reason], count) for reason, count in self._count.most_common()]

    def nothing(self, where: str) -> UserError:
        """What to raise when no pair is left."""
        return UserError(f"{where}: holds no {self.what}" + (f": {self}" if self.total else ""))

    def log(self, where: str) -> None:
        """One line, if anything was left out."""
        if self.total:
            logger.warning("%s: left out %d %s: %s", where, self.total, self.what, self)
