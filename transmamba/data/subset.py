"""Class-stratified, seeded parts of a data set: labels (N,) in, sorted positions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from .hashing import hash64

Partition = Literal["whole", "first_half", "second_half"]
Labels = npt.NDArray[np.int64]
Positions = npt.NDArray[np.int64]

# Distinct streams: the halves of a seed say nothing about its fractions.
_FRACTION, _HALVES, _HOLD_OUT, _FOLDS = range(4)


def stratified_fraction(labels: Labels, fraction: float, seed: int) -> Positions:
    """floor(n * fraction) images of each class of n, but at least one.

    Nested: with one seed, a smaller fraction is a subset of a larger one.
    Raises UserError unless 0 < fraction <= 1.
    """
    check_fraction(fraction)
    rank, size = _shuffled_rank(labels, seed, _FRACTION)
    return np.flatnonzero(rank < _share(size, fraction))


def hold_out(labels: Labels, fraction: float, seed: int) -> tuple[Positions, Positions]:
    """(kept, held out): a stratified share set aside, at least one image of each class and never all of it.

    Raises UserError unless 0 < fraction < 1 and every class has two images.
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"held-out share {fraction}: must be above 0 and below 1")
    rank, size = _shuffled_rank(labels, seed, _HOLD_OUT)
    _need_two(labels, size, f"hold out {fraction:.0%}")
    held = rank < np.minimum(_share(size, fraction), size - 1)
    return np.flatnonzero(~held), np.flatnonzero(held)


class _Shares(Protocol):
    """The options of a task that say what is trained on."""

    @property
    def validation(self) -> float: ...

    @property
    def split_seed(self) -> int: ...

    @property
    def fraction(self) -> float: ...

    @property
    def fraction_seed(self) -> int: ...


def trained_and_held_out(count: int, shares: _Shares) -> tuple[Positions, Positions]:
    """Of `count` items without classes: (trained on, held out), the latter first, so that fractions are
    measured alike. Raises UserError as `hold_out` and `stratified_fraction` do."""
    one = np.zeros(count, dtype=np.int64)
    chosen, held_out = np.arange(count, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if shares.validation:
        chosen, held_out = hold_out(one, shares.validation, shares.split_seed)
    return chosen[stratified_fraction(one[chosen], shares.fraction, shares.fraction_seed)], held_out


def partition_half(labels: Labels, partition: Partition, seed: int) -> Positions:
    """One of two disjoint stratified halves (the first takes the odd image), or everything."""
    if partition == "whole":
        return np.arange(len(labels), dtype=np.int64)
    if partition not in ("first_half", "second_half"):
        raise UserError(f"partition {partition!r}: write whole, first_half or second_half")
    rank, size = _shuffled_rank(labels, seed, _HALVES)
    _need_two(labels, size, f"take the {partition} of it")
    first = rank < (size + 1) // 2
    return np.flatnonzero(first if partition == "first_half" else ~first)


def fold_of(labels: Labels, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """The fold 0 .. folds-1 of each image, (N,): sizes within a class differ by at most one."""
    rank, _ = _shuffled_rank(labels, seed, _FOLDS)
    # Shifted by the class, or the first fold would take the extra image of every class.
    return (rank + labels) % folds


def check_fraction(fraction: float) -> None:
    if not 0.0 < fraction <= 1.0:
        raise UserError(f"fraction {fraction}: must be above 0 and at most 1 (0.1 is a tenth of each class)")


def check_held_out(validation: float, final_split: str | None) -> None:
    """Raises UserError for a share that cannot be held out, and where results are of one that is not."""
    if not 0.0 <= validation < 1.0:
        raise UserError(f"validation {validation}: a share from 0 (none) to below 1, such as 0.1")
    if final_split == "validation" and not validation:
        raise UserError("final_split is 'validation', but validation is 0; hold out a share, such as 0.1")


def held_out_of(positions: Sequence[int] | Positions) -> Positions:
    """The positions that are held out. Raises UserError where there are none."""
    if not len(positions):
        raise UserError(
            "no validation split: write test, or set task.validation to the share to hold out, such as 0.1"
        )
    return np.asarray(positions, dtype=np.int64)


def _share(size: Labels, fraction: float) -> Labels:
    """floor(size * fraction), at least 1; the nudge undoes rounding, as in 100 * 0.29 = 28.999..."""
    return np.maximum(1, np.floor(size * fraction + 1e-9).astype(np.int64))


def _shuffled_rank(labels: Labels, seed: int, stream: int) -> tuple[Labels, Labels]:
    """Each image's place in a random order of its class, and the size of that class, both (N,)."""
    order = np.lexsort((hash64(seed, stream, np.arange(len(labels))), labels))
    _, start, size = np.unique(labels[order], return_index=True, return_counts=True)
    rank, sizes = np.empty_like(labels), np.empty_like(labels)
    rank[order] = np.arange(len(labels)) - np.repeat(start, size)
    sizes[order] = np.repeat(size, size)
    return rank, sizes


def _need_two(labels: Labels, size: Labels, what: str) -> None:
    if len(size) and size.min() < 2:
        raise UserError(f"cannot {what}: class number {labels[int(size.argmin())]} has only one image")
