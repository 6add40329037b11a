"""Random images, to measure speed without a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import READERS
from ...errors import UserError
from .source import ArraySource, ImageSource, check_split

# Larger data sets repeat their pictures, so that memory stays within bounds.
_MAX_BYTES = 256 * 2**20


@READERS.register("synthetic")
@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Uniform noise in (size, size, 3), labelled 0, 1, .., num_classes - 1, 0, ..: nothing to be learnt.

    num_train, num_test: images of the splits
    num_classes: how many classes
    size: pixels on a side
    seed: of the noise
    """

    num_train: int = 1024
    num_test: int = 256
    num_classes: int = 10
    size: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_train", "num_test", "num_classes", "size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: must be at least 1")

    def build(self, split: str) -> ImageSource:
        check_split(split)
        count = self.num_train if split == "train" else self.num_test
        generator = np.random.Generator(np.random.PCG64([self.seed & 0xFFFFFFFF, split == "test"]))
        distinct = min(count, max(1, _MAX_BYTES // (self.size * self.size * 3)))
        pixels = generator.integers(0, 256, (distinct, self.size, self.size, 3), dtype=np.uint8)
        labels = np.arange(count, dtype=np.int64) % self.num_classes
        classes = tuple(f"class {number}" for number in range(self.num_classes))
        return (
            _Repeated(pixels, labels, classes) if distinct < count else ArraySource(pixels, labels, classes)
        )


class _Repeated(ArraySource):
    """Fewer pictures than labels: they come again in the same order."""

    def image(self, index: int) -> Image.Image:
        return super().image(index % len(self.pixels))

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None
