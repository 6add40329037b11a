"""Training pictures one at a time: crop, mirror, colours and erasing, by torchvision's functional transforms.

Every number that is drawn comes from `Draws` of the picture's own seed, in a fixed order, so that a picture
is the same whichever process or thread makes it, and whatever others draw meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...core.preprocessing import Preprocessing, ToChannels
from ..hashing import Draws
from .arrays import normalise
from .augment import Augment, Moves
from .rand_augment import RandAugment

# Width to height of a crop of random size, and of an erased rectangle; shares of the area that it may have.
_CROP_RATIO = (3 / 4, 4 / 3)
_ERASE_RATIO = (0.3, 1 / 0.3)
_ERASE_AREA = (0.02, 1 / 3)
_ATTEMPTS = 10


class PictureTransform:
    """Pictures of any mode and size -> a batch of model inputs, changed as `augment` says."""

    def __init__(self, preprocessing: Preprocessing, augment: Augment) -> None:
        self.preprocessing = preprocessing
        self.augment = augment
        self.to_channels = ToChannels(preprocessing.input_size[0])
        self.geometry: Callable[[Image.Image], Image.Image] | None = None
        if augment.random_resized_crop_scale is None:
            self.geometry = preprocessing.geometry()
        string = augment.rand_augment
        self.rand_augment = None if string is None else RandAugment.parse(string)
        self.fill = [min(255, round(255 * mean)) for mean in preprocessing.mean]

    def batch(self, pictures: Iterable[Image.Image], moves: Moves) -> Tensor:
        """(B, C, H, W) float32: picture n changed as entry n of `moves` says."""
        draws = [Draws(int(seed)) for seed in moves.seed]
        changed = [self._change(picture, moves, n, draws[n]) for n, picture in enumerate(pictures)]
        pixels = np.stack(changed)
        pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        images = normalise(pixels, self.preprocessing)
        for image, drawn in zip(images, draws, strict=True):
            if self.augment.erasing:
                _erase(image, self.augment.erasing, drawn)
        return images

    def _change(self, image: Image.Image, moves: Moves, number: int, draws: Draws) -> np.ndarray:
        """The picture as pixels, (H, W) or (H, W, 3)."""
        from torchvision.transforms.v2 import functional

        image = self.geometry(image) if self.geometry else self._resized_crop(self.to_channels(image), draws)
        padding = self.augment.crop_padding
        if padding:
            width, height = image.size
            top, left = int(moves.top[number]), int(moves.left[number])
            image = functional.crop(functional.pad(image, [padding]), top, left, height, width)
        if moves.mirror[number]:
            image = functional.horizontal_flip(image)
        if self.rand_augment is not None:
            image = self.rand_augment(image, draws, self.fill, self.preprocessing.interpolation)
        elif self.augment.color_jitter:
            image = _jitter(image, self.augment.color_jitter, draws)
        return np.asarray(image)

    def _resized_crop(self, image: Image.Image, draws: Draws) -> Image.Image:
        from torchvision.transforms.v2 import InterpolationMode, functional

        scale = self.augment.random_resized_crop_scale
        assert scale is not None
        top, left, height, width = crop_box(image.height, image.width, scale, draws)
        mode = InterpolationMode(self.preprocessing.interpolation)
        size = list(self.preprocessing.input_size[1:])
        return functional.resized_crop(image, top, left, height, width, size, interpolation=mode)


def crop_box(height: int, width: int, scale: tuple[float, float], draws: Draws) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of random size and aspect ratio: torchvision's RandomResizedCrop.

    Where none of ten fits, the largest crop in the middle whose aspect ratio is allowed.
    """
    low, high = _CROP_RATIO
    for _ in range(_ATTEMPTS):
        wide, tall = _rectangle(height * width, scale, _CROP_RATIO, draws)
        if 0 < wide <= width and 0 < tall <= height:
            return draws.below(height - tall + 1), draws.below(width - wide + 1), tall, wide
    wide, tall = width, height
    if width / height < low:
        tall = round(width / low)
    elif width / height > high:
        wide = round(height * high)
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _rectangle(
    area: int, share: tuple[float, float], ratio: tuple[float, float], draws: Draws
) -> tuple[int, int]:
    """(width, height): an evenly drawn share of the area, an evenly drawn logarithm of width to height."""
    wanted = area * draws.uniform(*share)
    aspect = math.exp(draws.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(wanted * aspect)), round(math.sqrt(wanted / aspect))


def _jitter(image: Image.Image, strength: float, draws: Draws) -> Image.Image:
    """Brightness, contrast and saturation, each by a factor around 1 and in random order."""
    from torchvision.transforms.v2 import functional

    changes = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    while changes:
        change = changes.pop(draws.below(len(changes)))
        image = change(image, draws.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
    return image


def _erase(image: Tensor, probability: float, draws: Draws) -> None:
    """Normal noise in place of a rectangle of `image`, (C, H, W), with that probability.

    Zhong et al., "Random erasing data augmentation", AAAI 2020, with the ranges of timm's RandomErasing.
    """
    from torchvision.transforms.v2 import functional

    channels, height, width = image.shape
    if draws.uniform() >= probability:
        return
    for _ in range(_ATTEMPTS):
        wide, tall = _rectangle(height * width, _ERASE_AREA, _ERASE_RATIO, draws)
        if wide < width and tall < height:
            top, left = draws.below(height - tall + 1), draws.below(width - wide + 1)
            own = torch.Generator().manual_seed(draws.bits())
            noise = torch.randn(channels, tall, wide, generator=own)
            functional.erase(image, top, left, tall, wide, noise, inplace=True)
            return
