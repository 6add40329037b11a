"""Training augmentation: what it may be, and two ways to apply it to the same pixels.

Where a crop and a mirror image are all that is asked for and the data set is in memory, a whole batch is
indexed at once; otherwise each picture goes through timm's transforms. Crop and mirror come from one hash of
(seed, epoch, index) either way, so both ways agree.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...core.preprocessing import Chain, Preprocessing, ToChannels
from ...errors import UserError
from ..hashing import hash64

# Which hash of (seed, ..., epoch, index): the order of an epoch uses another.
_AUGMENT = 1
_BITS_20 = np.uint64(0xFFFFF)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to training images; the defaults change nothing.

    crop_padding:  pixels of black added on each side before a crop of the input size is taken at random
    hflip:         mirror an image with probability 1/2
    random_resized_crop_scale: (smallest, largest) share of the area for a crop of random size and aspect
                   ratio (0.75 to 1.33), in place of the evaluation's resize and centre crop
    rand_augment:  a timm RandAugment string, such as rand-m9-mstd0.5-inc1; it replaces color_jitter
    color_jitter:  strength of random brightness, contrast and saturation, 0.4 being usual
    erasing:       probability that a rectangle is replaced by noise
    """

    crop_padding: int = 0
    hflip: bool = False
    random_resized_crop_scale: tuple[float, float] | None = None
    rand_augment: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise UserError(f"crop_padding {self.crop_padding}: must be 0 or more pixels")
        scale = self.random_resized_crop_scale
        if scale is not None and not 0.0 < scale[0] <= scale[1] <= 1.0:
            raise UserError(
                f"random_resized_crop_scale {list(scale)}: two shares of the area, such as [0.2, 1.0]"
            )
        if self.rand_augment is not None and not self.rand_augment.startswith("rand"):
            raise UserError(
                f"rand_augment {self.rand_augment!r}: write a string such as rand-m9-mstd0.5-inc1"
            )
        if self.rand_augment is not None and self.color_jitter:
            raise UserError("color_jitter has no effect beside rand_augment: write one of them")
        if self.color_jitter < 0.0:
            raise UserError(f"color_jitter {self.color_jitter}: must be 0 or more")
        if not 0.0 <= self.erasing <= 1.0:
            raise UserError(f"erasing {self.erasing}: must be a probability, from 0 to 1")

    @property
    def only_moves(self) -> bool:
        """Whether crop and mirror are all there is, so that a batch can be made by indexing."""
        needs_pictures = (
            self.random_resized_crop_scale or self.rand_augment or self.color_jitter or self.erasing
        )
        return not needs_pictures


@dataclass(frozen=True)
class Moves:
    """Where each image is cropped and whether it is mirrored: (N,) each, from (seed, epoch, index) alone."""

    top: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    mirror: npt.NDArray[np.bool_]
    seed: npt.NDArray[np.uint64]

    @classmethod
    def draw(
        cls, augment: Augment, seed: int, epoch: npt.NDArray[np.int64], index: npt.NDArray[np.int64]
    ) -> Moves:
        bits = hash64(seed, _AUGMENT, epoch, index)
        places = np.uint64(2 * augment.crop_padding + 1)
        return cls(
            top=((bits & _BITS_20) % places).astype(np.int64),
            left=(((bits >> np.uint64(20)) & _BITS_20) % places).astype(np.int64),
            mirror=(bits >> np.uint64(63)).astype(np.bool_) & augment.hflip,
            seed=hash64(bits),
        )


def can_index(array: npt.NDArray[np.uint8] | None, preprocessing: Preprocessing) -> bool:
    """Whether pictures (N, H, W, C) become model inputs without resizing or mixing of channels."""
    if array is None:
        return False
    _, height, width, channels = array.shape
    return preprocessing.keeps(height, width) and channels in (1, preprocessing.input_size[0])


def index_batch(
    array: npt.NDArray[np.uint8], index: npt.NDArray[np.int64], preprocessing: Preprocessing
) -> Tensor:
    """Pictures `index` of (N, H, W, C), normalised: (B, C, H, W) float32."""
    return _normalise(array[index], preprocessing)


def move_batch(
    array: npt.NDArray[np.uint8],
    index: npt.NDArray[np.int64],
    moves: Moves,
    preprocessing: Preprocessing,
    augment: Augment,
) -> Tensor:
    """The same, cropped and mirrored by one gather per batch."""
    if not augment.crop_padding and not augment.hflip:
        return index_batch(array, index, preprocessing)
    picked, padding = array[index], augment.crop_padding
    height, width = picked.shape[1:3]
    if padding:
        picked = np.pad(picked, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    columns = np.arange(width)[None, :]
    columns = np.where(moves.mirror[:, None], columns[:, ::-1], columns) + moves.left[:, None]
    rows = np.arange(height)[None, :] + moves.top[:, None]
    gathered = picked[np.arange(len(index))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return _normalise(gathered, preprocessing)


def _normalise(pixels: npt.NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32, in the very operations of ToTensor and Normalize."""
    channels = preprocessing.input_size[0]
    images = (
        torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    )
    if images.shape[1] != channels:
        images = images.repeat(1, channels, 1, 1)
    mean = torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = torch.tensor(preprocessing.std).view(-1, 1, 1)
    return images.div_(255).sub_(mean).div_(std)


class PictureTransform:
    """timm's training transforms for one picture at a time, seeded per picture."""

    def __init__(self, preprocessing: Preprocessing, augment: Augment) -> None:
        """Raises UserError when timm cannot read `augment.rand_augment`."""
        first, colour, last = _timm_train(preprocessing, augment)
        resized = augment.random_resized_crop_scale is not None
        to_channels = ToChannels(preprocessing.input_size[0])
        self.first = Chain((to_channels, first)) if resized else preprocessing.geometry()
        self.rest = Chain((colour, last))
        self.augment = augment

    def __call__(self, image: Image.Image, moves: Moves, number: int) -> Tensor:
        """The picture as (C, H, W) float32, changed as entry `number` of `moves` says.

        Seeds the global generators; wrap calls in `preserved_generators`.
        """
        _seed_generators(int(moves.seed[number]))
        image = self.first(image)
        padding = self.augment.crop_padding
        if padding:
            width, height = image.size
            left, top = int(moves.left[number]), int(moves.top[number])
            image = ImageOps.expand(image, padding).crop((left, top, left + width, top + height))
        if moves.mirror[number]:
            image = ImageOps.mirror(image)
        return self.rest(image)


def _timm_train(preprocessing: Preprocessing, augment: Augment) -> tuple[Callable[[Any], Any], ...]:
    """timm's (crop, colour, tensor) transforms."""
    from timm.data import create_transform

    try:
        transforms = create_transform(
            preprocessing.input_size,
            is_training=True,
            scale=augment.random_resized_crop_scale,
            hflip=0.0,  # the hash decides that
            color_jitter=augment.color_jitter or None,
            auto_augment=augment.rand_augment,
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
            std=preprocessing.std,
            re_prob=augment.erasing,
            re_mode="pixel",
            separate=True,
        )
    except (AssertionError, KeyError, ValueError) as error:
        reason = f" ({error})" if str(error) else ""
        raise UserError(
            f"rand_augment {augment.rand_augment!r} is not understood{reason}; "
            "write one such as rand-m9-mstd0.5-inc1"
        ) from error
    _mend_posterize(transforms[1])
    return transforms


def _mend_posterize(colour: Any) -> None:
    """Lets RandAugment keep 0 bits, which timm 1.0.31 asks for at high magnitudes and Pillow 13 refuses."""
    for transform in colour.transforms:
        for operation in getattr(transform, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The `bits` highest bits of each value; none leaves black, as it did before Pillow 13."""
    return image.point(lambda value: value & ~(0xFF >> min(bits, 8)))


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Puts the global CPU generators back as they were: in the main process they are the trainer's."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # Not torch.manual_seed, which reseeds the accelerators as well.
    torch.default_generator.manual_seed(seed)
