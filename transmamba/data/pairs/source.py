"""What every reader of pairs returns: pictures by number, each with its captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import NoSplit, UserError
from ..images.source import check_split

Value = TypeVar("Value")


class PairSource(Protocol):
    """One split of a data set of pictures and captions. Its order never changes: a picture's number
    identifies it across runs.

    skipped: how many pairs were left out when the split was read, for a reason that its reader has said

    A source whose pictures are drawn when they are asked for may say so by `drawn`: none needs to be looked
    through. One with twins, pictures that differ in one thing alone as their captions do, may say by
    `twin(index)` which is whose.
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


class VideoSource(PairSource, Protocol):
    """Videos and captions. Their `image` is the middle one of the frames, to look at.

    num_frames: how many frames of a video there are at most
    """

    @property
    def num_frames(self) -> int: ...

    def frames(self, index: int) -> list[Image.Image]:
        """Frames of the video in order, upright: `num_frames`, or all where it has fewer, never none. Raises
        UserError naming it when they do not decode."""


def video_source(source: PairSource) -> VideoSource | None:
    """The same, where its items are videos; None where they are pictures."""
    return cast(VideoSource, source) if getattr(source, "num_frames", None) is not None else None


def check_frames(frames: int) -> None:
    """Raises UserError unless a reader of videos may take so many frames of each."""
    if frames < 1:
        raise UserError(f"frames {frames}: write how many frames of a video are read, at least 1")


def middle(frames: Sequence[Image.Image]) -> Image.Image:
    """The one that stands for a video where one picture is shown."""
    return frames[len(frames) // 2]


def of_split(split: str, train: Value | None, test: Value | None, reader: str) -> Value:
    """What a reader with the keys `train` and `test` was given for one of them. Raises UserError when that
    was left out."""
    check_split(split)
    value = train if split == "train" else test
    if value is None:
        raise NoSplit(f"reader {reader} was given no {split} split; write {split}: as well")
    return value


def need_a_split(train: object, test: object, reader: str) -> None:
    """Raises UserError when both were left out."""
    if train is None and test is None:
        raise UserError(f"reader {reader} has neither train nor test; write one of them, or both")
