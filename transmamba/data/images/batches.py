"""Data sets of images that make whole batches, for training and for evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

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
_LOOKED_AT = 32


class Pictures(Protocol):
    """What a source of any kind of items has of pictures, as `ImageSource` says it."""

    def image(self, index: int) -> Image.Image: ...

    def array(self) -> npt.NDArray[np.uint8] | None: ...


class Augmented:
    """Training pictures by number, each changed as its moves say."""

    def __init__(self, source: Pictures, preprocessing: Preprocessing, augment: Augment) -> None:
        self.source, self.preprocessing, self.augment = source, preprocessing, augment
        array = source.array()
        self.array = array if augment.only_moves and can_index(array, preprocessing) else None
        self.transform = None if self.array is not None else PictureTransform(preprocessing, augment)

    def quick(self, count: int) -> bool:
        return _quick(self.array, count)

    def __call__(self, index: Indices, moves: Moves) -> Tensor:
        """(B, C, H, W) of numbers (B,). Raises UserError when one does not decode."""
        if self.array is not None:
            return move_batch(self.array, index, moves, self.preprocessing, self.augment)
        return self.changed((self.source.image(int(i)) for i in index), moves)

    def changed(self, pictures: Iterable[Image.Image], moves: Moves) -> Tensor:
        """(B, C, H, W) of pictures that do not lie in memory."""
        assert self.transform is not None, "the source has no array"
        return self.transform.batch(pictures, moves)


class Transformed:
    """Pictures by number, through the evaluation transform."""

    def __init__(self, source: Pictures, preprocessing: Preprocessing) -> None:
        self.source, self.preprocessing = source, preprocessing
        array = source.array()
        self.array = array if can_index(array, preprocessing) else None
        self.transform = preprocessing.eval_transform()

    def quick(self, count: int) -> bool:
        return _quick(self.array, count)

    def __call__(self, index: Indices) -> Tensor:
        """(B, C, H, W) of numbers (B,), perhaps none. Raises UserError when one does not decode."""
        if self.array is not None:
            return index_batch(self.array, index, self.preprocessing)
        return self.of([self.source.image(int(i)) for i in index])

    def of(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(B, C, H, W) of pictures that do not lie in memory."""
        if not pictures:
            return torch.zeros(0, *self.preprocessing.input_size)
        return torch.stack([self.transform(picture) for picture in pictures])


class TrainImages:
    """Augmented batches of `source` by arrays of (epoch, position); a position counts in `indices`, (M,)."""

    def __init__(
        self, source: ImageSource, indices: Indices, preprocessing: Preprocessing, augment: Augment, seed: int
    ) -> None:
        self.source = source
        self.indices = indices
        self.images = Augmented(source, preprocessing, augment)
        self.seed = seed

    def quick(self, count: int) -> bool:
        return self.images.quick(count)

    def identity(self) -> dict[str, Any]:
        """All that its images depend on, as JSON can hold it. Items are known by their number, their labels,
        and the pixels of a few."""
        some = (pixels(self.source.image(int(index))).tobytes() for index in few(self.indices))
        labels = self.source.labels[self.indices].tobytes()
        return identity_of(self.images, self.seed, chain((self.indices.tobytes(), labels), some))

    def batch(self, pairs: Indices) -> Batch:
        """The items `pairs`, (B, 2). Raises UserError when one does not decode."""
        epoch, index = pairs[:, 0], self.indices[pairs[:, 1]]
        images = self.images(index, Moves.draw(self.images.augment, self.seed, epoch, index))
        return image_batch(images, torch.from_numpy(self.source.labels[index]), torch.from_numpy(index))


class EvalImages:
    """Batches of `source` by arrays of image numbers, through the evaluation transform."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        self.source, self.images = source, Transformed(source, preprocessing)

    def quick(self, count: int) -> bool:
        return self.images.quick(count)

    def batch(self, index: Indices) -> Batch:
        """Images `index`, (B,), perhaps none. Raises UserError when one does not decode."""
        labels = torch.from_numpy(self.source.labels[index])
        return image_batch(self.images(index), labels, torch.from_numpy(index))


def shown(source: Pictures, indices: Indices, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Pictures to look at, (N, H, W, 3): resized and cropped as for evaluation, not normalised."""
    geometry = preprocessing.geometry()
    if not len(indices):
        return np.zeros((0, *preprocessing.input_size[1:], 3), dtype=np.uint8)
    return np.stack([np.array(geometry(source.image(int(i))).convert("RGB")) for i in indices])


def few(indices: Indices) -> Indices:
    """Some of them, evenly spread: those that are decoded to tell one data set from another."""
    return indices[:: -(-len(indices) // _LOOKED_AT)]


def identity_of(images: Augmented, seed: int, contents: Iterable[bytes]) -> dict[str, Any]:
    """All that training pictures depend on, as JSON can hold it; `contents` tell which they are."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return {
        "preprocessing": asdict(images.preprocessing),
        "augment": asdict(images.augment),
        "seed": seed,
        "items": digest.hexdigest(),
    }


def _quick(array: npt.NDArray[np.uint8] | None, count: int) -> bool:
    return array is not None and count * array[0].size <= _SMALL
