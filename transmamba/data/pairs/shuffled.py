"""Videos with their frames in another order: the control that tells whether a model sees the order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..hashing import permutation
from .source import VideoSource, middle

_SHUFFLE = 0xF4A3E5  # sets this hash of the number apart from others


@dataclass(frozen=True)
class ShuffledFrames:
    """A `VideoSource` of the same videos, the frames of each in another order, which its number says."""

    source: VideoSource

    @property
    def skipped(self) -> int:
        return self.source.skipped

    @property
    def num_frames(self) -> int:
        return self.source.num_frames

    def __len__(self) -> int:
        return len(self.source)

    def frames(self, index: int) -> list[Image.Image]:
        frames = self.source.frames(index)
        return [frames[place] for place in _another_order(len(frames), index)]

    def image(self, index: int) -> Image.Image:
        return middle(self.frames(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self.source.captions(index)

    def array(self) -> npt.NDArray[np.uint8] | None:
        return self.source.array()


def _another_order(count: int, index: int) -> npt.NDArray[np.int64]:
    """Places 0 to count - 1, not in order; of a single one there is no other."""
    for attempt in itertools.count():
        order = permutation(count, _SHUFFLE, index, attempt)
        if count < 2 or (order != np.arange(count)).any():
            return order
    raise AssertionError("endless")
