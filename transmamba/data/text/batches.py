"""Whole batches of texts, for training and for evaluation."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ...core.batch import Batch
from ..hashing import permutation
from .blocks import Blocks, Rows

Indices = npt.NDArray[np.int64]

# what no loss asks for
NOTHING = -100
# Which hash of (seed, ..., pass): the order of an epoch, augmentation and captions use others.
_MIXED = 3


class EvalText:
    """Batches of blocks by their numbers."""

    def __init__(self, blocks: Blocks, packed: bool) -> None:
        self.blocks, self.packed = blocks, packed

    def quick(self, count: int) -> bool:
        return True  # numbers are copied out of memory: sending them takes longer

    def batch(self, index: Indices) -> Batch:
        """Blocks `index`, (B,), perhaps none."""
        rows = Rows.empty(len(index), self.blocks.block)
        for row, number in enumerate(index):
            self.blocks.fill(rows, row, int(number))
        return text_batch(rows, index, self.packed, self.blocks.padded)


class TrainText:
    """Batches by arrays of (epoch, position): every block of the first of `parts` comes once an epoch, and
    `counts` blocks of each further one, which goes through all of its own, in an order that is drawn anew
    each time, before one comes again.

    parts:  of one length and kind
    counts: blocks of each that an epoch has; of the first all
    """

    def __init__(self, parts: Sequence[Blocks], counts: Sequence[int], seed: int, packed: bool) -> None:
        assert counts[0] == len(parts[0]), "the first part is what an epoch is"
        self.parts, self.counts, self.seed, self.packed = tuple(parts), tuple(counts), seed, packed
        self.starts = np.cumsum([0, *counts])
        # the numbers that blocks are known by
        self.numbers = np.cumsum([0, *map(len, parts)])
        self.padded = any(part.padded for part in parts)

    def quick(self, count: int) -> bool:
        return True

    def batch(self, pairs: Indices) -> Batch:
        """The items `pairs`, (B, 2)."""
        rows = Rows.empty(len(pairs), self.parts[0].block)
        index = np.zeros(len(pairs), np.int64)
        for row, (epoch, position) in enumerate(pairs.tolist()):
            part, number = self.which(epoch, position)
            self.parts[part].fill(rows, row, number)
            index[row] = self.numbers[part] + number
        return text_batch(rows, index, self.packed, self.padded)

    def which(self, epoch: int, position: int) -> tuple[int, int]:
        """(part, its block) of a position in an epoch."""
        part = int(np.searchsorted(self.starts, position, side="right")) - 1
        if part == 0:
            return 0, position
        drawn = epoch * self.counts[part] + position - int(self.starts[part])
        times, place = divmod(drawn, len(self.parts[part]))
        return part, int(_order(len(self.parts[part]), self.seed, part, times)[place])


@functools.lru_cache(maxsize=16)
def _order(size: int, seed: int, part: int, times: int) -> Indices:
    return permutation(size, seed, _MIXED, part, times)


def text_batch(rows: Rows, index: Indices, packed: bool, padded: bool) -> Batch:
    """Inputs `text` (B, L), with `text_segment` (B, L) if packed and `text_mask` (B, L) if padded; targets
    `tokens` (B, L), shifted: -100 where a document ends, where nothing is, and where nothing is asked.

    Of its counts `tokens` are the real ones that go in, `answers` the targets that are asked.
    """
    here, there = rows.document[:, :-1], rows.document[:, 1:]
    real = here >= 0
    asked = (here == there) & real & rows.asked[:, 1:]
    targets = np.where(asked, rows.ids[:, 1:], NOTHING)
    inputs = {"text": torch.from_numpy(np.ascontiguousarray(rows.ids[:, :-1]))}
    if packed:
        # padding is a document of its own, behind the others
        behind = rows.document.max(axis=1, initial=-1, keepdims=True) + 1
        inputs["text_segment"] = torch.from_numpy(np.where(real, here, behind).astype(np.int32))
    if padded:
        inputs["text_mask"] = torch.from_numpy(real)
    counts = {"samples": len(index), "tokens": int(real.sum()), "answers": int(asked.sum())}
    return Batch(
        inputs,
        {"tokens": torch.from_numpy(targets)},
        torch.from_numpy(np.asarray(index, dtype=np.int64)),
        counts,
    )
