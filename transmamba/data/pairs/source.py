"""What every reader of pairs returns: pictures by number, each with its captions."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import UserError
from ..images.source import check_split

Value = TypeVar("Value")


class PairSource(Protocol):
    """One split of a data set of pictures and captions. Its order never changes: a picture's number
    identifies it across runs.

    skipped: how many pairs were left out when the split was read, for a reason that its reader has said
    """

    @property
    def skipped(self) -> int: ...

    def __len__(self) -> int:
        """Pictures."""

    def image(self, index: int) -> Image.Image:
        """The picture as stored, upright. Raises UserError naming it when it does not decode."""

    def captions(self, index: int) -> tuple[str, ...]:
        """What is said of it, in a fixed order: one caption, several, or none where there are pictures
        alone."""

    def array(self) -> npt.NDArray[np.uint8] | None:
        """All pictures, (N, H, W, C), when they are in memory and of one size; None otherwise."""


def of_split(split: str, train: Value | None, test: Value | None, reader: str) -> Value:
    """What a reader with the keys `train` and `test` was given for one of them. Raises UserError when that
    was left out."""
    check_split(split)
    value = train if split == "train" else test
    if value is None:
        raise UserError(f"pair reader {reader} was given no {split} split; write {split}: as well")
    return value


def need_a_split(train: object, test: object, reader: str) -> None:
    """Raises UserError when both were left out."""
    if train is None and test is None:
        raise UserError(f"pair reader {reader} has neither train nor test; write one of them, or both")
