"""Tokenised documents as rows of one length: packed one after another, or each in rows of its own.

A row of L tokens is made of the L + 1 tokens at its place, so that its last one is asked too: the token that
follows it in its document is known, though it stands in the next row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .tokenised import Tokenised

Indices = npt.NDArray[np.int64]


@dataclass
class Rows:
    """B rows that are filled, of L + 1 places each.

    ids:      (B, L + 1) int64
    document: (B, L + 1) int32, the number of the document within the row; -1 where there is nothing
    asked:    (B, L + 1) bool, whether the token is to be predicted by the one before it
    """

    ids: npt.NDArray[np.int64]
    document: npt.NDArray[np.int32]
    asked: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, count: int, block: int) -> Rows:
        shape = (count, block + 1)
        return cls(np.zeros(shape, np.int64), np.full(shape, -1, np.int32), np.zeros(shape, np.bool_))


class Blocks(Protocol):
    """Rows by number, in an order that never changes.

    block:   L, tokens of a row
    padded:  whether a row may have fewer
    total:   tokens in all
    """

    @property
    def block(self) -> int: ...

    @property
    def padded(self) -> bool: ...

    @property
    def total(self) -> int: ...

    def __len__(self) -> int: ...

    def fill(self, rows: Rows, row: int, number: int) -> None:
        """Row `row` of them with the block of that number."""


class _Chosen:
    """Some documents one after another, as if they were one text.

    answers_only: of conversations, only what the assistant says is asked
    """

    def __init__(self, texts: Tokenised, documents: Indices, block: int, answers_only: bool) -> None:
        self.texts, self.documents, self.block = texts, documents, block
        self.answers_only = answers_only and texts.about.answered
        bounds = texts.bounds
        self.lengths = bounds[documents + 1] - bounds[documents]

    @property
    def total(self) -> int:
        return int(self.lengths.sum())

    def put(self, rows: Rows, row: int, place: int, document: int, start: int, count: int, name: int) -> None:
        """Tokens [start, start + count) of a document, the `name`-th of the row, at a place of it."""
        begin = int(self.texts.bounds[self.documents[document]]) + start
        there = slice(place, place + count)
        rows.ids[row, there] = self.texts.tokens[begin : begin + count]
        rows.document[row, there] = name
        answers = self.texts.answers if self.answers_only else None
        rows.asked[row, there] = True if answers is None else answers[begin : begin + count]


class Packed(_Chosen):
    """Documents follow each other; one that does not fit is cut, and goes on in the next block.

    All blocks are full: the last one begins earlier, with tokens that the block before it has asked already
    and that are context alone here. Only fewer tokens than a block are padded.
    """

    def __init__(self, texts: Tokenised, documents: Indices, block: int, answers_only: bool = False) -> None:
        super().__init__(texts, documents, block, answers_only)
        self.starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    @property
    def padded(self) -> bool:
        return self.total < self.block

    def __len__(self) -> int:
        return -(-int(self.starts[-1]) // self.block)

    def fill(self, rows: Rows, row: int, number: int) -> None:
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} of {len(self)}")
        end = int(self.starts[-1])
        wanted = number * self.block
        begin = max(0, min(wanted, end - self.block))
        stop = min(begin + self.block + 1, end)
        first = int(np.searchsorted(self.starts, begin, side="right")) - 1
        last = int(np.searchsorted(self.starts, stop, side="left"))
        for name, document in enumerate(range(first, last)):
            start, until = max(begin, int(self.starts[document])), min(stop, int(self.starts[document + 1]))
            offset = start - int(self.starts[document])
            self.put(rows, row, start - begin, document, offset, until - start, name)
        if begin < wanted:  # the token at `wanted` was asked by the block before, too
            rows.asked[row, : wanted - begin + 1] = False


class Padded(_Chosen):
    """A document a row; of one that is longer, as many rows as it takes."""

    padded = True

    def __init__(self, texts: Tokenised, documents: Indices, block: int, answers_only: bool = False) -> None:
        super().__init__(texts, documents, block, answers_only)
        # the last token asks nothing, and takes no row for itself
        pieces = np.maximum(1, -(-(self.lengths - 1) // block))
        self.first = np.concatenate([np.zeros(1, np.int64), np.cumsum(pieces)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def fill(self, rows: Rows, row: int, number: int) -> None:
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        document = int(np.searchsorted(self.first, number, side="right")) - 1
        start = (number - int(self.first[document])) * self.block
        count = min(self.block + 1, int(self.lengths[document]) - start)
        self.put(rows, row, 0, document, start, count, 0)
