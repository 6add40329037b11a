"""A source decoded once and kept in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from .decoding import in_threads, pixels
from .source import ArraySource, ImageSource, picture


@dataclass
class DecodedSource:
    """Decoded images of different sizes, each (H, W, C). An `ImageSource`."""

    decoded: list[npt.NDArray[np.uint8]]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return picture(self.decoded[index])

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None


def in_memory(source: ImageSource) -> ImageSource:
    """Every image of `source` decoded now, in one array if all have one size. Raises UserError as `image`."""
    decoded = list(in_threads(range(len(source)), lambda i: pixels(source.image(i)), "decoding images"))
    if len({array.shape for array in decoded}) == 1:
        return ArraySource(np.stack(decoded), source.labels, source.classes, source.skipped)
    return DecodedSource(decoded, source.labels, source.classes, source.skipped)
