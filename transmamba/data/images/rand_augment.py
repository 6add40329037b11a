"""RandAugment in timm's strengths, each operation by torchvision's functional transforms.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", CVPR Workshops
2020. The string, the names of the operations, their ranges and the defaults are those of
`timm.data.auto_augment.rand_augment_transform`; what is drawn comes from the picture's own numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...errors import UserError
from ..hashing import Draws

# timm's ranges end at this magnitude, unless mmax allows more.
_FULL = 10.0
# With a larger mstd, timm draws the magnitude evenly from 0 to m.
_MOST_STD = 100.0
_OPTION = {"m": "magnitude", "n": "count", "p": "probability", "mstd": "std", "mmax": "limit", "inc": "inc"}
_WHOLE = ("m", "n", "mmax", "inc")

OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
# At most so much to either side: degrees, tangents, shares of the width or the height.
_SIGNED = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
_ENHANCE = ("Color", "Contrast", "Brightness", "Sharpness")


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`count` operations, drawn with replacement, each applied with `probability`.

    magnitude:  strength, 10 being full
    std:        normal noise on it; infinite to draw it evenly from 0 to `magnitude`
    limit:      the largest magnitude that noise may reach
    increasing: posterize, solarize and the enhancements grow stronger with it, instead of running from one
                end of their ranges to the other
    """

    magnitude: float = _FULL
    count: int = 2
    probability: float = 0.5
    std: float = 0.0
    limit: float = _FULL
    increasing: bool = False

    @classmethod
    def parse(cls, string: str) -> RandAugment:
        """From timm's string, such as rand-m9-n2-mstd0.5-inc1. Raises UserError for one that says more."""
        first, *parts = string.split("-")
        if not first.startswith("rand"):
            raise UserError(f"rand_augment {string!r}: write a string such as rand-m9-mstd0.5-inc1")
        options: dict[str, Any] = {}
        for part in (*parts, *([] if first == "rand" else [first])):
            found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            key, value = found.groups() if found else ("", "")
            if key not in _OPTION or (key in _WHOLE and "." in value):
                raise UserError(
                    f"rand_augment {string!r} is not understood ({part}); "
                    "write one such as rand-m9-mstd0.5-inc1"
                )
            options[_OPTION[key]] = float(value)
        return cls(
            magnitude=options.get("magnitude", _FULL),
            count=int(options.get("count", 2)),
            probability=options.get("probability", 0.5),
            std=math.inf if options.get("std", 0.0) > _MOST_STD else options.get("std", 0.0),
            limit=options.get("limit") or _FULL,
            increasing=bool(options.get("inc", False)),
        )

    def __call__(self, image: Image.Image, draws: Draws, fill: list[int], interpolation: str) -> Image.Image:
        """A changed picture of the same size and mode, 'L' or 'RGB'.

        fill:          what comes in from outside, a value 0..255 per channel
        interpolation: 'bicubic', 'bilinear' or 'nearest'
        """
        for _ in range(self.count):
            name = OPERATIONS[draws.below(len(OPERATIONS))]
            if draws.uniform() < self.probability:
                strength = argument(name, self._level(draws), self.increasing, draws)
                image = apply(name, image, strength, fill, interpolation)
        return image

    def _level(self, draws: Draws) -> float:
        """The strength of one operation: 0 .. 1, or more where `limit` allows it."""
        magnitude = self.magnitude
        if math.isinf(self.std):
            magnitude = draws.uniform(0.0, magnitude)
        elif self.std:
            magnitude = draws.normal(magnitude, self.std)
        return max(0.0, min(magnitude, self.limit)) / _FULL


def argument(name: str, level: float, increasing: bool, draws: Draws) -> float:
    """What timm gives to operation `name` at that level; 0 where it takes nothing."""
    if name in _SIGNED:
        return _signed(level * _SIGNED[name], draws)
    if name in _ENHANCE:
        return max(0.1, 1.0 + _signed(level * 0.9, draws)) if increasing else level * 1.8 + 0.1
    if name == "Posterize":
        bits = int(level * 4)
        return max(0, 4 - bits) if increasing else min(bits, 8)
    if name == "Solarize":
        threshold = min(256, int(level * 256))
        return 256 - threshold if increasing else threshold
    return min(128, int(level * 110)) if name == "SolarizeAdd" else 0


def _signed(value: float, draws: Draws) -> float:
    return value if draws.uniform() < 0.5 else -value


def apply(name: str, image: Image.Image, value: float, fill: list[int], interpolation: str) -> Image.Image:
    """The picture after operation `name` with its `argument`."""
    # Here, since torchvision takes seconds to import and a recipe is read without it.
    from torchvision.transforms.v2 import InterpolationMode, functional

    outside: dict[str, Any] = {"interpolation": InterpolationMode(interpolation), "fill": fill}
    match name:
        case "AutoContrast" | "Equalize" | "Invert":
            return getattr(functional, name.lower())(image)
        case "Rotate":
            return functional.rotate(image, value, **outside)
        case "Posterize":
            # No bits at all leave black, which Pillow refuses to make.
            return functional.posterize(image, int(value)) if value else Image.new(image.mode, image.size)
        case "Solarize":
            return functional.solarize(image, value)
        case "SolarizeAdd":  # torchvision has none
            return image.point([v + int(value) if v < 128 else v for v in range(256)] * len(fill))
        case "Color":
            return functional.adjust_saturation(image, value)
        case "Contrast" | "Brightness" | "Sharpness":
            return getattr(functional, f"adjust_{name.lower()}")(image, value)
    shear = [math.degrees(math.atan(value)) * (name == axis) for axis in ("ShearX", "ShearY")]
    names = ("TranslateXRel", "TranslateYRel")
    move = [value * size * (name == axis) for axis, size in zip(names, image.size, strict=True)]
    return functional.affine(image, 0.0, move, 1.0, shear, center=[0.0, 0.0], **outside)
