"""How a picture becomes a model's input. A student carries its teacher's, so both see the same pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .text import LanguageTokenizer, Tokenizer

# What timm assumes for a model that does not say (timm.data.constants).
_TIMM_MEAN = (0.485, 0.456, 0.406)
_TIMM_STD = (0.229, 0.224, 0.225)
_TIMM_CROP_PCT = 0.875
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
CROP_MODES = ("center", "center_down", "squash", "border")


@dataclass(frozen=True)
class Preprocessing:
    """timm's evaluation transform, as data.

    input_size:    (channels 1 or 3, height, width) in pixels
    mean, std:     one per channel, for pixels scaled to 0..1
    interpolation: a filter of PIL's, one of INTERPOLATIONS
    crop_pct:      side of the centre crop as a share of the resized picture
    crop_mode:     'center' (resize the short side, crop), 'squash' (each side for itself, crop), 'border'
        (resize the long side, pad with the mean, crop); 'center_down' is 'center' but that an odd margin's
        smaller half is cut off first, as transformers does. timm takes it for 'center', one pixel beside it
        in a quarter of all pictures
    text: of a model that reads texts too, how they become its input
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    text: Tokenizer | None = None

    def __post_init__(self) -> None:
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise UserError(f"preprocessing: input_size {self.input_size}: 1 or 3 channels, got {channels}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) != channels:
                raise UserError(f"preprocessing: {name} {getattr(self, name)} for {channels} channels")
        for name, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"preprocessing: {name} {getattr(self, name)!r} is none of {', '.join(known)}"
                )
        if not self.crop_pct > 0:
            raise UserError(f"preprocessing: crop_pct {self.crop_pct} is no share; write one above 0")

    @classmethod
    def from_pretrained_cfg(cls, cfg: Mapping[str, Any]) -> Preprocessing:
        """From the `pretrained_cfg` of a timm model; what it leaves out is as timm assumes."""
        size = tuple(int(side) for side in cfg.get("input_size") or (3, 224, 224))
        if len(size) != 3:
            raise UserError(f"pretrained_cfg: input_size {size}: expected (channels, height, width)")
        return cls(
            input_size=size,
            mean=_per_channel(cfg.get("mean") or _TIMM_MEAN, size[0]),
            std=_per_channel(cfg.get("std") or _TIMM_STD, size[0]),
            interpolation=cfg.get("interpolation") or "bicubic",
            crop_pct=float(cfg.get("crop_pct") or _TIMM_CROP_PCT),
            crop_mode=cfg.get("crop_mode") or "center",
        )

    def to_pretrained_cfg(self) -> dict[str, Any]:
        """The entries of a timm `pretrained_cfg` that `from_pretrained_cfg` reads."""
        return {
            "input_size": self.input_size,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
        }

    def eval_transform(self) -> Callable[[Image.Image], Tensor]:
        """Picture of any mode and size -> (C, H, W) float32, as `timm.data.create_transform` does it."""
        return Chain((ToChannels(self.input_size[0]), *_timm_eval(self)))

    def geometry(self) -> Callable[[Image.Image], Image.Image]:
        """The same up to the pixels: a picture of the input size, in mode 'L' or 'RGB'."""
        return Chain((ToChannels(self.input_size[0]), *_timm_eval(self)[:-2]))

    def keeps(self, height: int, width: int) -> bool:
        """Whether pictures of this size pass through `geometry` untouched."""
        resized = tuple(math.floor(side / self.crop_pct) for side in self.input_size[1:])
        return (height, width) == self.input_size[1:] == resized


@dataclass(frozen=True)
class PicturesAndText:
    """How a model that writes about pictures reads both.

    pictures:    how one becomes its tower's input
    text:        its tokenizer
    image_token: the number that stands in a text where a picture's tokens are put
    places:      how many of them each picture takes, N
    """

    pictures: Preprocessing
    text: LanguageTokenizer
    image_token: int
    places: int

    def __post_init__(self) -> None:
        if self.places < 1:
            raise UserError(f"preprocessing: {self.places} tokens a picture; the text needs at least 1")

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of a picture in pixels."""
        return self.pictures.input_size


def of_pictures(preprocessing: Preprocessing | PicturesAndText) -> Preprocessing:
    """What it says of pictures."""
    return preprocessing.pictures if isinstance(preprocessing, PicturesAndText) else preprocessing


@dataclass(frozen=True)
class Chain:
    """Functions applied in order; picklable, so that it reaches the data workers however they are started."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, value: Any) -> Any:
        for step in self.steps:
            value = step(value)
        return value


@dataclass(frozen=True)
class ToChannels:
    """A picture of any mode as 'L' (1 channel) or 'RGB' (3): transparency over white, 16 bits scaled to 8."""

    channels: int

    def __call__(self, image: Image.Image) -> Image.Image:
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode == mode:
            return image
        if image.mode.startswith("I"):
            image = _eight_bits(image)
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            image = Image.alpha_composite(white, layer)
        return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode != "I" or values.max(initial=0) > 255:
        values = values >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _timm_eval(preprocessing: Preprocessing) -> list[Callable[[Any], Any]]:
    """timm's steps: resize and crop, then `MaybeToTensor` and `Normalize`."""
    from timm.data import create_transform

    down = preprocessing.crop_mode == "center_down"
    transform = create_transform(
        preprocessing.input_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode="center" if down else preprocessing.crop_mode,
    )
    steps = list(transform.transforms)
    if down:
        steps[1] = CropDown(preprocessing.input_size[1:])
    return steps


@dataclass(frozen=True)
class CropDown:
    """The middle (height, width) of a picture, one that is smaller on black; of an odd margin the larger half
    is right and below."""

    size: tuple[int, int]

    def __call__(self, image: Image.Image) -> Image.Image:
        # towards zero, so that an odd padding has its larger half there too
        top, left = (int((has - to) / 2) for has, to in zip(image.size[::-1], self.size, strict=True))
        return image.crop((left, top, left + self.size[1], top + self.size[0]))


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """One value per channel: a single one is repeated, three are averaged for a grayscale model."""
    given = tuple(float(value) for value in values)
    if len(given) == channels:
        return given
    if len(given) == 1:
        return given * channels
    return (math.fsum(given) / len(given),) * channels
