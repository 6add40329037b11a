"""Drawn scenes of which one number is asked, in classes: without a download, and known exactly.

After the structured tasks of VTAB (arXiv 1910.04867), which ask for the count, the place, the turn or the
size of things in drawn pictures. What is not asked is drawn anew in each picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import READERS
from ...errors import refuse_all
from ..hashing import Draws, hash64
from ..scenes.draw import LARGEST_SIDE, SMALLEST_SIDE, render
from ..scenes.programs import COLOURS, KINDS, MOST_OBJECTS, STYLES, Object, Scene
from ..scenes.sampling import choose, draw_ground, is_free, place
from .source import ImageSource, check_split

Question = Literal["count", "position", "rotation", "size"]

_GROUNDS = ("textures", "plain")
_COLOURS = tuple(COLOURS)
_PARTS = 4  # of a side, where a place is asked
_ASKED = "star"
CLASSES: dict[Question, int] = {"count": MOST_OBJECTS, "position": _PARTS**2, "rotation": 8, "size": 6}
_TURNED = (
    "arrow",
    "semicircle",
)  # kinds that no turn leaves as they were
_SIZES = (0.14, 0.9)  # shares of the side
_WITHIN = 0.7  # of a class's span, about its middle, is drawn from: no picture lies between two


@READERS.register("scene_classes")
@dataclass(frozen=True, kw_only=True)
class SceneClasses:
    """Coloured shapes over a plain or textured ground, each picture a function of (seed, split, number).

    question: count (1 to 8 shapes: 8 classes), position (in which of 4 x 4 parts the star is, two others
        beside it: 16), rotation (of an arrow or a semicircle, by eighths of a turn: 8), size (of a shape: 6)
    side:     pixels a side
    count_train, count_test: pictures of the splits
    seed:     of the drawing
    """

    question: Question
    side: int = 32
    count_train: int = 1000
    count_test: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; write a number of at least 1"
            for name in ("count_train", "count_test")
            if (value := getattr(self, name)) < 1
        ]
        if not SMALLEST_SIDE <= self.side <= LARGEST_SIDE:
            problems.append(f"side is {self.side}; write pixels from {SMALLEST_SIDE} to {LARGEST_SIDE}")
        refuse_all(problems)

    def build(self, split: str) -> ImageSource:
        check_split(split)
        return ScenesOf(self, split)


@dataclass(frozen=True)
class ScenesOf:
    """Scenes of one split, drawn when asked for. An `ImageSource`.

    Classes come in turn, so that a split has as many of each; where `few` takes some, they are drawn.
    """

    config: SceneClasses
    split: str
    skipped: int = 0

    @property
    def classes(self) -> tuple[str, ...]:
        question, count = self.config.question, CLASSES[self.config.question]
        if question == "count":
            return tuple(str(number + 1) for number in range(count))
        return tuple(f"{question} {number}" for number in range(count))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return np.arange(len(self), dtype=np.int64) % len(self.classes)

    def __len__(self) -> int:
        return int(getattr(self.config, f"count_{self.split}"))

    def program(self, index: int) -> Scene:
        """What is in a picture."""
        seed = hash64(self.config.seed, self.split == "test", index)[0]
        draws, question = Draws(int(seed)), self.config.question
        objects = DRAWN[question](draws, index % CLASSES[question])
        return Scene(objects, draw_ground(draws, _GROUNDS), choose(draws, STYLES))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(render(self.program(index), self.config.side))

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None


def _counted(draws: Draws, label: int) -> tuple[Object, ...]:
    """label + 1 shapes, apart from each other; the size of shapes says little of their number."""
    pairs = [(choose(draws, _COLOURS), choose(draws, KINDS)) for _ in range(label + 1)]
    if label:
        return place(draws, pairs, _SIZES[0], smallest=_SIZES[0])
    size = draws.uniform(_SIZES[0], 0.3)
    return (_shape(draws, pairs[0][1], _at(draws, size), _at(draws, size), size),)


def _placed(draws: Draws, label: int) -> tuple[Object, ...]:
    """A star, and two other shapes apart from it, which lie anywhere."""
    down, across = divmod(label, _PARTS)
    x, y = ((part + _middle(draws)) / _PARTS for part in (across, down))
    objects = [_shape(draws, _ASKED, x, y, draws.uniform(_SIZES[0], 0.25))]
    others = [kind for kind in KINDS if kind != _ASKED]
    while len(objects) < 3:
        size = draws.uniform(_SIZES[0], 0.25)
        other = _shape(draws, choose(draws, others), _at(draws, size), _at(draws, size), size)
        if is_free(other, objects):
            objects.append(other)
    return tuple(objects)


def _turned(draws: Draws, label: int) -> tuple[Object, ...]:
    angle = 2 * math.pi * (label + _middle(draws) - 0.5) / CLASSES["rotation"]
    size = draws.uniform(0.35, 0.8)
    kind = choose(draws, _TURNED)
    return (replace(_shape(draws, kind, _at(draws, size), _at(draws, size), size), angle=angle),)


def _sized(draws: Draws, label: int) -> tuple[Object, ...]:
    """Classes are equal steps of a logarithm."""
    low, high = _SIZES
    size = low * (high / low) ** ((label + _middle(draws)) / CLASSES["size"])
    return (_shape(draws, choose(draws, KINDS), _at(draws, size), _at(draws, size), size),)


def _middle(draws: Draws) -> float:
    """Where within a class, from 0 to 1."""
    return 0.5 + _WITHIN * draws.uniform(-0.5, 0.5)


def _shape(draws: Draws, kind: str, x: float, y: float, size: float) -> Object:
    """Of any colour, nearly upright."""
    return Object(kind, choose(draws, _COLOURS), x, y, size, draws.uniform(-0.2, 0.2))


def _at(draws: Draws, size: float) -> float:
    """Along one axis, the disc of that size within the picture."""
    return draws.uniform(size / 2, 1 - size / 2)


DRAWN: dict[Question, Callable[[Draws, int], tuple[Object, ...]]] = {
    "count": _counted,
    "position": _placed,
    "rotation": _turned,
    "size": _sized,
}
