"""Training augmentation: what it may be, and where each picture is cropped and mirrored.

What is drawn for a picture follows from (seed, epoch, index) alone: `arrays` applies crop and mirror to a
whole batch at once, `pictures` applies everything to one picture at a time, and both agree where both apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ..hashing import hash64
from .rand_augment import RandAugment

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
    rand_augment:  a timm RandAugment string (of m, n, p, mstd, mmax, inc), such as rand-m9-mstd0.5-inc1; it
                   replaces color_jitter
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
        if self.rand_augment is not None:
            RandAugment.parse(self.rand_augment)
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
    """Where each image is cropped, whether it is mirrored, and the seed of its other changes: (N,) each."""

    top: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    mirror: npt.NDArray[np.bool_]
    seed: npt.NDArray[np.uint64]

    def repeated(self, counts: Sequence[int]) -> Moves:
        """Each one so many times: the frames of a video move alike."""
        return Moves(
            top=np.repeat(self.top, counts),
            left=np.repeat(self.left, counts),
            mirror=np.repeat(self.mirror, counts),
            seed=np.repeat(self.seed, counts),
        )

    @classmethod
    def draw(
        cls, augment: Augment, seed: int, epoch: npt.NDArray[np.int64], index: npt.NDArray[np.int64]
    ) -> Moves:
        """From (seed, epoch, index) alone; epoch and index are (N,)."""
        bits = hash64(seed, _AUGMENT, epoch, index)
        places = np.uint64(2 * augment.crop_padding + 1)
        return cls(
            top=((bits & _BITS_20) % places).astype(np.int64),
            left=(((bits >> np.uint64(20)) & _BITS_20) % places).astype(np.int64),
            mirror=(bits >> np.uint64(63)).astype(np.bool_) & augment.hflip,
            seed=hash64(bits),
        )
