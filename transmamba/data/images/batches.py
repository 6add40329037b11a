"""Data sets of images that make whole batches, for training and for evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...core.batch import Batch, image_batch
from ...core.preprocessing import Preprocessing
from .arrays import can_index, index_batch, move_batch
from .augment import Augment, Moves
from .decoding import pixels
from .pictures import PictureTransform
from .source import ImageSource

Indices = npt.NDArray[np.int64]

# A batch indexed out of memory costs less than its way between processes up to about this many values.
_SMALL = 2**20
# images that are decoded to tell one data set from another
LOOKED_AT = 32


class TrainImages:
    """Augmented batches of `source` by arrays of (epoch, position); a position counts in `indices`, (M,)."""

    def __init__(
        self, source: ImageSource, indices: Indices, preprocessing: Preprocessing, augment: Augment, seed: int
    ) -> None:
        self.source = source
        self.indices = indices
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        array = source.array()
        self.array = array if augment.only_moves and can_index(array, preprocessing) else None
        self.transform = None if self.array is not None else PictureTransform(preprocessing, augment)

    def quick(self, count: int) -> bool:
        return quick(self.array, count)

    def identity(self) -> dict[str, Any]:
        """All that its images depend on, as JSON can hold it. Items are known by their number, their labels,
        and the pixels of a few."""
        digest = hashlib.sha256(self.indices.tobytes())
        digest.update(self.source.labels[self.indices].tobytes())
        for index in self.indices[:: -(-len(self.indices) // LOOKED_AT)]:
            digest.update(pixels(self.source.image(int(index))).tobytes())
        return {
            "preprocessing": asdict(self.preprocessing),
            "augment": asdict(self.augment),
            "seed": self.seed,
            "items": digest.hexdigest(),
        }

    def batch(self, pairs: Indices) -> Batch:
        """The items `pairs`, (B, 2). Raises UserError when one does not decode."""
        epoch, index = pairs[:, 0], self.indices[pairs[:, 1]]
        moves = Moves.draw(self.augment, self.seed, epoch, index)
        if self.array is not None:
            images = move_batch(self.array, index, moves, self.preprocessing, self.augment)
        else:
            assert self.transform is not None
            images = self.transform.batch((self.source.image(int(i)) for i in index), moves)
        return image_batch(images, torch.from_numpy(self.source.labels[index]), torch.from_numpy(index))


class EvalImages:
    """Batches of `source` by arrays of image numbers, through the evaluation transform."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        self.source = source
        self.preprocessing = preprocessing
        array = source.array()
        self.array = array if can_index(array, preprocessing) else None
        self.transform = preprocessing.eval_transform()

    def quick(self, count: int) -> bool:
        return quick(self.array, count)

    def batch(self, index: Indices) -> Batch:
        """Images `index`, (B,), perhaps none. Raises UserError when one does not decode."""
        if self.array is not None:
            images = index_batch(self.array, index, self.preprocessing)
        elif len(index):
            images = torch.stack([self.transform(self.source.image(int(i))) for i in index])
        else:
            images = torch.zeros(0, *self.preprocessing.input_size)
        return image_batch(images, torch.from_numpy(self.source.labels[index]), torch.from_numpy(index))


def quick(array: npt.NDArray[np.uint8] | None, count: int) -> bool:
    return array is not None and count * array[0].size <= _SMALL
