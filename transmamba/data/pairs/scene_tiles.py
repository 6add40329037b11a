"""Pictures of other readers as tiles and grounds of drawn scenes.

Made for Noto and Blobmoji emoji with CLDR names, MNIST, CIFAR-10 and figures of OpenStax textbooks; none of
them is part of this project. What they are, their licences and where they lie: docs/scenes.md.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.load import Part
from ...config.registry import PAIRS, READERS
from ...errors import UserError
from ..images.decoding import in_threads, pixels
from ..images.memory import in_memory
from ..images.source import ImageSource
from ..scenes.programs import SMALLEST
from ..scenes.stock import Stock
from .source import PairSource

Pixels = npt.NDArray[np.uint8]

# What is a photograph, not a chart or a drawing: little of it is white, it has many colours (of 4 bits a
# channel), and none of them (of 3 bits) is most of it. Of textbook figures that leaves about a fifth, nearly
# all of them photographs and paintings.
_WHITE, _MOST_WHITE, _FEWEST_COLOURS, _MOST_OF_ONE = 236, 0.1, 150, 0.3
_LARGEST = 1024  # pixels of a photograph's shorter side that are kept
_NAME = re.compile(r"[\w .!'-]+")  # no brackets, colons and commas: captions are lists

logger = logging.getLogger("transmamba.data")


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Pictures that stand in scenes as objects, named in captions. Scenes of the train split show training
    pictures, all other splits show test pictures.

    shapes:   whether drawn shapes are among the objects too; each sort is as likely
    emoji:    a pair reader of transparent pictures whose first caption is a name (a grinning face emoji): its
              train split has the usual style, its test split that of unseen_style; names in both are shown
    digits:   a reader of digits, white on black, shown in an object's colour (a red handwritten 3)
    pictures: a reader of images with classes (a photo of a frog)
    filling:  the share of scenes that are one tile over about the whole picture
    smallest: the size of the disc around a tile, as a share of the side, from which sizes are drawn; 0.2 at
              most, and tiles of crowded scenes may be smaller
    """

    shapes: bool = True
    emoji: Annotated[Any, Part(PAIRS)] | None = None
    digits: Annotated[Any, Part(READERS)] | None = None
    pictures: Annotated[Any, Part(READERS)] | None = None
    filling: float = 0.0
    smallest: float = SMALLEST

    def __post_init__(self) -> None:
        Stock(filling=self.filling, smallest=self.smallest)  # refuses what is out of range
        if not self.shapes and (self.emoji, self.digits, self.pictures) == (None, None, None):
            raise UserError("tiles has no sort of objects; write shapes: true, emoji, digits or pictures")
        if self.filling and (self.emoji, self.digits, self.pictures) == (None, None, None):
            raise UserError(f"filling {self.filling}: there are no tiles; write emoji, digits or pictures")


def stock(tiles: Tiles, photographs: Any, split: str) -> Stock:
    """What scenes of one of their splits are made of, decoded and in memory.

    photographs: a pair reader, or None
    Raises UserError as the readers do.
    """
    part = "train" if split == "train" else "test"
    return Stock(
        shapes=tiles.shapes,
        emoji=_emoji(tiles.emoji, "test" if split == "unseen_style" else "train"),
        digits=_classified(tiles.digits, part),
        pictures=_classified(tiles.pictures, part),
        photographs=_photographs(photographs, part),
        filling=tiles.filling,
        smallest=tiles.smallest,
    )


def _classified(reader: Any, part: str) -> ImageSource | None:
    """Decoded now, before workers are forked that would each decode for themselves."""
    if reader is None:
        return None
    source: ImageSource = reader.build(part)
    return source if source.array() is not None else in_memory(source)


def _emoji(reader: Any, style: str) -> dict[str, Pixels]:
    """Names to pictures in one style, those that both styles have."""
    if reader is None:
        return {}
    known = {split: _named(reader.build(split)) for split in ("train", "test")}
    both = sorted(set(known["train"][1]) & set(known["test"][1]))
    source, numbers = known[style]
    if not both:
        raise UserError("emoji: no name is in both styles, the reader's train and test splits")
    decoded = in_threads([numbers[name] for name in both], partial(_transparent, source), "decoding emoji")
    return dict(zip(both, decoded, strict=True))


def _named(source: PairSource) -> tuple[PairSource, dict[str, int]]:
    """The source, and the pictures by their names, the first of each."""
    found: dict[str, int] = {}
    for number in range(len(source)):
        name = next(iter(source.captions(number)), "").replace("’", "'")
        if _NAME.fullmatch(name):
            found.setdefault(name, number)
    return source, found


def _transparent(source: PairSource, number: int) -> Pixels:
    """(4, S, S), red, green and blue multiplied by alpha."""
    picture = source.image(number).convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.ascontiguousarray(np.asarray(square.convert("RGBa")).transpose(2, 0, 1))


def _photographs(reader: Any, part: str) -> tuple[Pixels, ...]:
    if reader is None:
        return ()
    source: PairSource = reader.build(part)
    found = in_threads(range(len(source)), lambda number: _photograph(source.image(number)), "photographs")
    kept = tuple(picture for picture in found if picture is not None)
    if not kept:
        raise UserError("photographs: none of the pictures is one: they look like charts and drawings")
    logger.info("photographs: %d of %d pictures; others look like charts", len(kept), len(source))
    return kept


def _photograph(picture: Image.Image) -> Pixels | None:
    """(H, W, 3), its shorter side `_LARGEST` at most; None for a chart or a drawing."""
    array = pixels(picture)
    if array.shape[-1] != 3 or (array.min(-1) >= _WHITE).mean() > _MOST_WHITE:
        return None
    fine, coarse = (_colours(array, bits) for bits in (4, 3))
    is_one = len(fine) >= _FEWEST_COLOURS and coarse.max() <= _MOST_OF_ONE * coarse.sum()
    if not is_one:
        return None
    shorter = min(picture.size)
    if shorter <= _LARGEST:
        return array
    # a camera's would fill memory, and be drawn much smaller
    small = Image.fromarray(array).resize([round(side * _LARGEST / shorter) for side in picture.size])
    return np.asarray(small)


def _colours(array: Pixels, bits: int) -> npt.NDArray[np.int64]:
    """How many pixels have each of the colours that are there, of `bits` a channel."""
    channels = (array >> (8 - bits)).astype(np.int64)
    return np.unique(channels @ np.array([1 << 2 * bits, 1 << bits, 1]), return_counts=True)[1]
