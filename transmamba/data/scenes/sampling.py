"""Programs from random numbers: which objects a scene has, where they lie and over which ground."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ..hashing import Draws
from .programs import (
    GAP,
    LARGEST,
    MOST_OBJECTS,
    PHOTOGRAPH,
    PLAIN_GROUNDS,
    SMALLEST,
    STYLES,
    TEXTURES,
    Ground,
    Object,
    Pair,
    Scene,
    is_tile,
    relations,
    triple,
)

T = TypeVar("T")
Groups = tuple[tuple[Pair, ...], ...]

_NUMBERS = 2**31  # of seeds and of pictures of a kind, which are taken modulo how many there are


@dataclass(frozen=True)
class Menu:
    """What scenes are drawn from.

    groups:   the (colour, kind) that an object may have; a group is drawn evenly, then one of its pairs
    states:   whether (kind, relation, kind) may be stated
    grounds:  the sorts of ground, of plain, textures and photographs, each as likely
    filling:  the share of scenes that are one tile over about the whole picture
    smallest: the size from which tiles are drawn; crowded ones shrink to SMALLEST
    first:    the groups of the first object; `groups` where empty
    styles:   how objects may be drawn
    needs_relation: draw again until a relation can be stated
    """

    groups: Groups
    states: Callable[[str, str, str], bool]
    grounds: tuple[str, ...]
    filling: float
    smallest: float
    first: Groups = ()
    styles: tuple[str, ...] = STYLES
    needs_relation: bool = False

    @property
    def tiles(self) -> Groups:
        """Those of which the first object may be a tile."""
        return tuple(group for group in self.first or self.groups if is_tile(group[0][1]))


def draw_scene(draws: Draws, menu: Menu, fewest: int = 1, most: int = MOST_OBJECTS) -> Scene:
    """A scene of `fewest` to `most` objects, each number as likely, or of one tile that fills it."""
    if menu.filling and menu.tiles and fewest == 1 and draws.uniform() < menu.filling:
        return _draw_filled(draws, menu)
    while True:
        count = fewest + draws.below(most - fewest + 1)
        objects = place(draws, draw_pairs(draws, menu, count), menu.smallest)
        scene = Scene(objects, draw_ground(draws, menu.grounds), choose(draws, menu.styles))
        stated = [r for r in relations(objects) if menu.states(*triple(objects, r))]
        if stated:
            return replace(scene, relation=choose(draws, stated))
        if not menu.needs_relation:
            return scene


def choose(draws: Draws, options: Sequence[T]) -> T:
    return options[draws.below(len(options))]


def _draw_pair(draws: Draws, groups: Groups) -> Pair:
    return choose(draws, choose(draws, groups) if len(groups) > 1 else groups[0])


def draw_pairs(draws: Draws, menu: Menu, count: int) -> list[Pair]:
    """`count` pairs; in a third of the scenes one of them comes two to four times, otherwise all differ."""
    copies = 1
    if count > 1 and draws.below(3) == 0:
        copies = 2 + draws.below(min(count, 4) - 1)
    chosen = [_draw_pair(draws, menu.first or menu.groups)]
    while len(chosen) < count - copies + 1:
        pair = _draw_pair(draws, menu.groups)
        if pair not in chosen:
            chosen.append(pair)
    return chosen + [choose(draws, chosen)] * (copies - 1)


def draw_ground(draws: Draws, sorts: Sequence[str]) -> Ground:
    """One of the sorts, each as likely."""
    sort = choose(draws, sorts)
    if sort == "plain":
        return Ground(choose(draws, PLAIN_GROUNDS))
    return Ground(PHOTOGRAPH if sort == "photographs" else choose(draws, TEXTURES), draws.below(_NUMBERS))


def place(
    draws: Draws, pairs: Sequence[Pair], smallest_tile: float, smallest: float = SMALLEST
) -> tuple[Object, ...]:
    """An object for each pair, their discs within the picture and apart; sizes are log-uniform, of tiles from
    `smallest_tile`, of shapes from `smallest`, to which crowded ones of either sort shrink."""
    if len(pairs) == 1:
        return (_alone(draws, pairs[0], smallest_tile, smallest),)
    largest = largest_of(len(pairs))
    placed: list[Object] = []
    for pair in pairs:
        size = draw_size(draws, _smallest(pair, smallest_tile, smallest), largest)
        found = free_spot(draws, pair, placed, size, smallest)
        assert found is not None, "tried until there is room"
        placed.append(_numbered(draws, found))
    return tuple(placed)


def free_spot(
    draws: Draws, pair: Pair, placed: Sequence[Object], size: float, smallest: float, tries: int | None = None
) -> Object | None:
    """An object apart from those that are placed, which shrinks where it is crowded; None after so many
    `tries`, where there are any to count."""
    angle = draws.uniform(-0.2, 0.2)
    for _ in itertools.count() if tries is None else range(tries):
        x, y = draws.uniform(size / 2, 1 - size / 2), draws.uniform(size / 2, 1 - size / 2)
        candidate = Object(pair[1], pair[0], x, y, size, angle)
        if is_free(candidate, placed):
            return candidate
        size = max(smallest, size * 0.9)
    return None


def largest_of(count: int) -> float:
    """The largest size from which one of so many objects is drawn."""
    return min(LARGEST, 0.85 / count**0.5)


def is_free(candidate: Object, others: Sequence[Object]) -> bool:
    """Whether the candidate's disc lies apart from all others."""
    for other in others:
        apart = (candidate.size + other.size) / 2 + GAP
        if (candidate.x - other.x) ** 2 + (candidate.y - other.y) ** 2 < apart * apart:
            return False
    return True


def _alone(draws: Draws, pair: Pair, smallest_tile: float, smallest: float) -> Object:
    """A single object, well within one of the nine parts of the picture, which its captions name."""
    x, y = ((draws.below(3) + draws.uniform(0.3, 0.7)) / 3 for _ in range(2))
    largest = min(LARGEST, 2 * min(x, y, 1 - x, 1 - y))
    size = draw_size(draws, _smallest(pair, smallest_tile, smallest), largest)
    return _numbered(draws, Object(pair[1], pair[0], x, y, size, draws.uniform(-0.2, 0.2)))


def _smallest(pair: Pair, of_tiles: float, of_shapes: float) -> float:
    return of_tiles if is_tile(pair[1]) else of_shapes


def draw_size(draws: Draws, smallest: float, largest: float) -> float:
    """Log-uniform."""
    return smallest * (largest / smallest) ** draws.uniform()


def _numbered(draws: Draws, thing: Object) -> Object:
    """The object, and where it is a tile, which picture of its kind; tiles stand upright."""
    return replace(thing, angle=0.0, number=draws.below(_NUMBERS)) if is_tile(thing.kind) else thing


def _draw_filled(draws: Draws, menu: Menu) -> Scene:
    """One tile whose square has 0.8 to 1.1 of the picture's side, about its middle."""
    colour, kind = _draw_pair(draws, menu.tiles)
    x, y = draws.uniform(0.45, 0.55), draws.uniform(0.45, 0.55)
    thing = Object(kind, colour, x, y, 2**0.5 * draws.uniform(0.8, 1.1))
    return Scene((_numbered(draws, thing),), draw_ground(draws, menu.grounds), choose(draws, menu.styles))
