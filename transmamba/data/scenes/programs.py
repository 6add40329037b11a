"""The program behind a picture: which objects, where, over which ground; plain data that a number determines.

Lengths are shares of the picture's side, x to the right and y downwards from the upper left corner, so that a
program knows no resolution. An object's `size` is the diameter of the disc around it; the discs of a scene
lie apart, hence what is said of their number and order can be seen.

An object is a drawn shape, or a tile: a square picture whose corners lie on that disc. A tile's kind says in
words what it is, as captions do: `grinning face emoji`, `handwritten 3`, `photo of a frog`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

SMALLEST = 1 / 16
LARGEST = 0.42
GAP = 0.02  # between the discs of two objects
MOST_OBJECTS = 8  # of a scene unless a number is asked for
MOST_THAT_FIT = 12  # where each has a tenth of the side, all but one even twice as much
CLEARLY = 0.08  # by how much of the side an object is left of another, at the least
LARGER = 2.0  # how many times the size of another has an object called larger: its area is larger then too

KINDS = (
    *("circle", "square", "triangle", "star", "cross", "ring"),
    *("diamond", "hexagon", "rectangle", "oval", "semicircle", "arrow"),
)
HELD_KINDS = ("heart", "crescent", "flower")
COLOURS = {
    "red": (215, 25, 30),
    "orange": (255, 130, 0),
    "yellow": (250, 225, 20),
    "green": (20, 190, 50),
    "cyan": (0, 215, 225),
    "blue": (25, 50, 235),
    "purple": (130, 20, 170),
    "pink": (255, 120, 190),
    "brown": (115, 60, 15),
    "olive": (125, 130, 0),
}
STYLES = ("flat", "outlined", "shaded")
HELD_STYLES = ("hatched",)
PLAIN_GROUNDS = ("white", "grey", "black")
TEXTURES = ("grass", "sand", "sky", "wood", "stone", "water")
PHOTOGRAPH = "photograph"  # the ground whose seed says which photograph, and which part of it
FILLS = 1.0  # objects of this size and more fill the picture; no other is larger than LARGEST

OPPOSITES = {
    "left of": "right of",
    "above": "below",
    "larger than": "smaller than",
    "right of": "left of",
    "below": "above",
    "smaller than": "larger than",
}

Pair = tuple[str, str]  # (colour, kind); tiles have no colour, "", but for digits


@dataclass(frozen=True)
class Object:
    """One drawn shape or tile.

    kind:   of KINDS or HELD_KINDS, or a tile's
    colour: of COLOURS, or "" for a tile that has colours of its own
    x, y:  the centre of its disc
    size:  the diameter of its disc
    angle: by how much a shape is turned, radians, clockwise
    number: which picture of its kind a tile is, modulo how many there are
    """

    kind: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0
    number: int = 0

    @property
    def pair(self) -> Pair:
        return self.colour, self.kind


@dataclass(frozen=True)
class Ground:
    """What lies behind the objects: a name of PLAIN_GROUNDS or TEXTURES, or PHOTOGRAPH, and the seed of the
    latter two."""

    name: str
    seed: int = 0


@dataclass(frozen=True)
class Relation:
    """Object number `subject` is `name` (one of OPPOSITES) object number `other`."""

    name: str
    subject: int
    other: int


@dataclass(frozen=True)
class Scene:
    """One to MOST_THAT_FIT objects, their ground, how they are drawn, and the relation that captions state.

    relation is None for one object, and where none of those allowed holds between two that can be told by
    their names.
    """

    objects: tuple[Object, ...]
    ground: Ground
    style: str = "flat"
    relation: Relation | None = None

    @property
    def is_filled(self) -> bool:
        """Whether one object takes the whole picture; nothing is said of its place and ground."""
        return len(self.objects) == 1 and self.objects[0].size >= FILLS


def is_tile(kind: str) -> bool:
    """Whether objects of that kind are pictures, not drawn shapes."""
    return kind not in KINDS and kind not in HELD_KINDS


def relations(objects: Sequence[Object]) -> list[Relation]:
    """All that clearly hold between two objects whose colour and kind no other has.

    Left, right, above and below are said of the axis along which two centres are further apart.
    """
    pairs = [thing.pair for thing in objects]
    named = [number for number, pair in enumerate(pairs) if pairs.count(pair) == 1]
    found = []
    for position, subject in enumerate(named):
        for other in named[position + 1 :]:
            for name in between(objects[subject], objects[other]):
                found += [Relation(name, subject, other), Relation(OPPOSITES[name], other, subject)]
    return found


def between(subject: Object, other: Object) -> list[str]:
    """The relations of OPPOSITES that clearly hold of two objects."""
    right, down = subject.x - other.x, subject.y - other.y
    names = []
    if abs(right) >= CLEARLY and abs(right) > 1.2 * abs(down):
        names.append("right of" if right > 0 else "left of")
    if abs(down) >= CLEARLY and abs(down) > 1.2 * abs(right):
        names.append("below" if down > 0 else "above")
    if subject.size >= LARGER * other.size or other.size >= LARGER * subject.size:
        names.append("larger than" if subject.size > other.size else "smaller than")
    return names


def triple(objects: Sequence[Object], relation: Relation) -> tuple[str, str, str]:
    """(kind, relation, kind)."""
    return objects[relation.subject].kind, relation.name, objects[relation.other].kind


def swapped(scene: Scene) -> Scene:
    """The scene's twin: the two objects of its relation in each other's place and size, the opposite stated.

    Both scenes have the same objects; only the relation tells their captions apart. The scene must have one.
    """
    relation = scene.relation
    assert relation is not None
    objects = list(scene.objects)
    one, two = objects[relation.subject], objects[relation.other]
    objects[relation.subject] = replace(one, x=two.x, y=two.y, size=two.size)
    objects[relation.other] = replace(two, x=one.x, y=one.y, size=one.size)
    return replace(scene, objects=tuple(objects), relation=replace(relation, name=OPPOSITES[relation.name]))
