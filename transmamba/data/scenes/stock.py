"""What scenes are made of beside what the program draws: pictures that stand in them as tiles or lie behind.

A stock belongs to one split: where training and test pictures differ, it holds those of one of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ..images.source import ImageSource
from .programs import SMALLEST, Object

Pixels = npt.NDArray[np.uint8]

DIGIT, PHOTO = "handwritten ", "photo of "  # how kinds of digits and of pictures begin
LARGEST_SMALLEST = 0.2  # a single object in the outer ninth of a picture has room for this


@dataclass(frozen=True, eq=False, kw_only=True)
class Stock:
    """shapes:  whether drawn shapes are among the objects
    emoji:      names to pictures, (4, H, W), red, green and blue multiplied by the alpha that follows
    digits:     classified pictures, white on black, whose ink takes an object's colour
    pictures:   classified pictures as they are
    photographs: (H, W, 3) each, as grounds
    filling:    the share of scenes that are one tile over about the whole picture
    smallest:   the size from which tiles are drawn
    """

    shapes: bool = True
    emoji: Mapping[str, Pixels] = field(default_factory=dict)
    digits: ImageSource | None = None
    pictures: ImageSource | None = None
    photographs: tuple[Pixels, ...] = ()
    filling: float = 0.0
    smallest: float = SMALLEST

    def __post_init__(self) -> None:
        if not 0 <= self.filling <= 1:
            raise UserError(f"filling {self.filling}: write a share of the scenes, from 0 to 1")
        if not SMALLEST <= self.smallest <= LARGEST_SMALLEST:
            raise UserError(
                f"smallest {self.smallest}: write a share of the side from {SMALLEST} to {LARGEST_SMALLEST}"
            )

    @property
    def grounds(self) -> tuple[str, ...]:
        """Which sorts of ground scenes have; their order is part of what is drawn."""
        return ("textures", "plain", *(("photographs",) if self.photographs else ()))

    @cached_property
    def kinds(self) -> dict[str, tuple[str, ...]]:
        """The kinds of tiles of each sort, in words."""
        found = {
            "emoji": tuple(sorted(map(emoji_kind, self.emoji))),
            "digits": () if self.digits is None else tuple(map(digit_kind, self.digits.classes)),
            "pictures": () if self.pictures is None else tuple(map(picture_kind, self.pictures.classes)),
        }
        return {sort: kinds for sort, kinds in found.items() if kinds}

    def tile(self, thing: Object) -> Pixels:
        """The picture of a tile, (C, H, W), square: how much ink (C = 1), colours (3), or colours multiplied
        by alpha, and alpha (4). Raises UserError when it does not decode."""
        if thing.kind in self._emoji:
            return self._emoji[thing.kind]
        source, rows = self._rows[thing.kind]
        picture = source.image(int(rows[thing.number % len(rows)]))
        square = _middle(np.asarray(picture.convert("L" if thing.colour else "RGB")))
        return square[None] if square.ndim == 2 else np.ascontiguousarray(square.transpose(2, 0, 1))

    def photograph(self, seed: int) -> Pixels:
        """A square out of one of the photographs, (S, S, 3): which of them and which part the seed says."""
        whole = self.photographs[seed % len(self.photographs)]
        side, length = sorted(whole.shape[:2])
        start = seed // len(self.photographs) % (length - side + 1)
        wide = whole.shape[1] == length
        return whole[:, start : start + side] if wide else whole[start : start + side]

    @cached_property
    def _emoji(self) -> dict[str, Pixels]:
        return {emoji_kind(name): picture for name, picture in self.emoji.items()}

    @cached_property
    def _rows(self) -> dict[str, tuple[ImageSource, npt.NDArray[np.int64]]]:
        """For each kind of digit and picture, where it comes from and which pictures there show it."""
        found = {}
        for source, named in ((self.digits, digit_kind), (self.pictures, picture_kind)):
            for number, name in enumerate(source.classes if source is not None else ()):
                assert source is not None
                rows = np.flatnonzero(source.labels == number)
                if not len(rows):
                    raise UserError(f"tiles: no picture shows the class {name!r}; drop it, or add some")
                found[named(name)] = source, rows
        return found


SHAPES_ALONE = Stock()


def emoji_kind(name: str) -> str:
    return f"{name} emoji"


def digit_kind(name: str) -> str:
    return DIGIT + name


def picture_kind(name: str) -> str:
    """`photo of a frog`, for the class `frog`; underscores of folders' names become spaces."""
    words = name.replace("_", " ")
    return f"{PHOTO}{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


def _middle(pixels: Pixels) -> Pixels:
    """(S, S, ...), the largest square about the middle of (H, W, ...)."""
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
