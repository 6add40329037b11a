"""The program behind a picture: which objects, where, over which ground; plain data that a number determines.

Lengths are shares of the picture's side, x to the right and y downwards from the upper left corner, so that a
program knows no resolution. An object's `size` is the diameter of the disc around it; the discs of a scene
lie apart, hence what is said of their number and order can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..hashing import Draws

SMALLEST = 1 / 16
LARGEST = 0.42
GAP = 0.02  # between the discs of two objects
MOST_OBJECTS = 8
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

OPPOSITES = {
    "left of": "right of",
    "above": "below",
    "larger than": "smaller than",
    "right of": "left of",
    "below": "above",
    "smaller than": "larger than",
}

Pair = tuple[str, str]  # (colour, kind)


@dataclass(frozen=True)
class Object:
    """One drawn shape.

    kind, colour: of KINDS or HELD_KINDS, and of COLOURS
    x, y:  the centre of its disc
    size:  the diameter of its disc
    angle: by how much it is turned, radians, clockwise
    """

    kind: str
    colour: str
    x: float
    y: float
    size: float
    angle: float = 0.0

    @property
    def pair(self) -> Pair:
        return self.colour, self.kind


@dataclass(frozen=True)
class Ground:
    """What lies behind the objects: a name of PLAIN_GROUNDS or TEXTURES, and the texture's seed."""

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
    """One to MOST_OBJECTS objects, their ground, how they are drawn, and the relation that captions state.

    relation is None for one object, and where none of those allowed holds between two that can be told by
    their names.
    """

    objects: tuple[Object, ...]
    ground: Ground
    style: str = "flat"
    relation: Relation | None = None


@dataclass(frozen=True)
class Menu:
    """What scenes are drawn from.

    pairs:    the (colour, kind) that an object may have
    first:    the pairs of the first object; `pairs` where empty
    styles:   how objects may be drawn
    states:   whether (kind, relation, kind) may be stated
    needs_relation: draw again until a relation can be stated
    """

    pairs: tuple[Pair, ...]
    states: Callable[[str, str, str], bool]
    first: tuple[Pair, ...] = ()
    styles: tuple[str, ...] = STYLES
    needs_relation: bool = False


def draw_scene(draws: Draws, menu: Menu, fewest: int = 1, most: int = MOST_OBJECTS) -> Scene:
    """A scene of `fewest` to `most` objects, each number as likely."""
    while True:
        count = fewest + draws.below(most - fewest + 1)
        objects = place(draws, draw_pairs(draws, menu, count))
        scene = Scene(objects, draw_ground(draws), menu.styles[draws.below(len(menu.styles))])
        stated = [r for r in relations(objects) if menu.states(*triple(objects, r))]
        if stated:
            return replace(scene, relation=stated[draws.below(len(stated))])
        if not menu.needs_relation:
            return scene


def draw_pairs(draws: Draws, menu: Menu, count: int) -> list[Pair]:
    """`count` pairs; in a third of the scenes one of them comes two to four times, otherwise all differ."""
    copies = 1
    if count > 1 and draws.below(3) == 0:
        copies = 2 + draws.below(min(count, 4) - 1)
    first = menu.first or menu.pairs
    chosen = [first[draws.below(len(first))]]
    while len(chosen) < count - copies + 1:
        pair = menu.pairs[draws.below(len(menu.pairs))]
        if pair not in chosen:
            chosen.append(pair)
    return chosen + [chosen[draws.below(len(chosen))]] * (copies - 1)


def draw_ground(draws: Draws) -> Ground:
    """A plain one or a texture, each as likely."""
    if draws.below(2):
        return Ground(PLAIN_GROUNDS[draws.below(len(PLAIN_GROUNDS))])
    return Ground(TEXTURES[draws.below(len(TEXTURES))], draws.below(2**31))


def place(draws: Draws, pairs: Sequence[Pair]) -> tuple[Object, ...]:
    """An object for each pair, their discs within the picture and apart; sizes are log-uniform."""
    if len(pairs) == 1:
        return (_alone(draws, pairs[0]),)
    largest = min(LARGEST, 0.85 / len(pairs) ** 0.5)
    placed: list[Object] = []
    for colour, kind in pairs:
        size = SMALLEST * (largest / SMALLEST) ** draws.uniform()
        angle = draws.uniform(-0.2, 0.2)
        while True:
            x, y = draws.uniform(size / 2, 1 - size / 2), draws.uniform(size / 2, 1 - size / 2)
            candidate = Object(kind, colour, x, y, size, angle)
            if is_free(candidate, placed):
                break
            size = max(SMALLEST, size * 0.9)
        placed.append(candidate)
    return tuple(placed)


def is_free(candidate: Object, others: Sequence[Object]) -> bool:
    """Whether the candidate's disc lies apart from all others."""
    for other in others:
        apart = (candidate.size + other.size) / 2 + GAP
        if (candidate.x - other.x) ** 2 + (candidate.y - other.y) ** 2 < apart * apart:
            return False
    return True


def _alone(draws: Draws, pair: Pair) -> Object:
    """A single object, well within one of the nine parts of the picture, which its captions name."""
    x, y = ((draws.below(3) + draws.uniform(0.3, 0.7)) / 3 for _ in range(2))
    largest = min(LARGEST, 2 * min(x, y, 1 - x, 1 - y))
    size = SMALLEST * (largest / SMALLEST) ** draws.uniform()
    return Object(pair[1], pair[0], x, y, size, draws.uniform(-0.2, 0.2))


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
