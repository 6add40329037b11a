"""What questions are made of: phrases that mean objects, what may be asked about, and scenes that fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ..hashing import Draws
from .captions import plural, the, where, with_article
from .programs import MOST_OBJECTS, Object, Pair
from .sampling import choose, draw_size, free_spot, place

T = TypeVar("T")
Objects = Sequence[Object]

# of the side: smaller shapes cannot be told apart in small pictures, and any may be asked about
SMALLEST_ASKED = 0.1
_TRIES = 100  # to find an object its place before a scene is begun anew

YES_NO, TRUE_FALSE = ("yes", "no"), ("true", "false")


@dataclass(frozen=True)
class Phrase:
    """Which objects are meant: those of a colour, of a kind, of both, or all."""

    colour: str = ""
    kind: str = ""

    def fits(self, pair: Pair) -> bool:
        return self.colour in ("", pair[0]) and self.kind in ("", pair[1])

    @property
    def one(self) -> str:
        """`red circle`, `red shape`, `circle`, `shape`"""
        return f"{self.colour} {self.kind or 'shape'}".strip()

    @property
    def several(self) -> str:
        """`red circles`"""
        return f"{self.colour} {plural(self.kind or 'shape')}".strip()

    @property
    def indefinite(self) -> str:
        """`a red circle`"""
        return with_article(self.one)

    def among(self, objects: Objects) -> list[Object]:
        return [thing for thing in objects if self.fits(thing.pair)]


@dataclass(frozen=True)
class Cast:
    """Who may appear in a split's questions.

    subjects: the (colour, kind) that questions are about
    others:   those of all further objects
    states:   whether (kind, relation, kind) may be asked
    twin:     whether the two that a relation is asked of change places
    fewest, most: objects of a scene
    """

    subjects: tuple[Pair, ...]
    others: tuple[Pair, ...]
    states: Callable[[str, str, str], bool]
    twin: bool = False
    fewest: int = 1
    most: int = MOST_OBJECTS

    def further(self, draws: Draws, there: int, least: int = 0, most: int | None = None) -> int:
        """How many objects stand beside those that are there, `least` or more: of all together each number
        that a scene may have (up to `most`, where that is given) is as likely."""
        return number_from(draws, max(least, self.fewest - there), (most or self.most) - there)

    def parts(self, part: int, phrase: Phrase) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(answers, options): the colours (part 0) or kinds (1) of subjects that the phrase means, and of
        everyone whom it means. They differ where subjects are pairs that training holds back."""
        named = [
            tuple(dict.fromkeys(pair[part] for pair in pairs if phrase.fits(pair)))
            for pairs in (self.subjects, (*self.subjects, *self.others))
        ]
        return named[0], named[1]


@dataclass(frozen=True)
class Posed:
    """A question without its words, its answer, and objects of which that holds.

    form:      which wordings ask it
    slots:     what they are filled with
    options:   the answers that were as likely when this one was drawn
    summary, reasoning: how the answer is found, and why it is that
    """

    form: str
    slots: Mapping[str, str]
    options: tuple[str, ...]
    answer: str
    objects: tuple[Object, ...]
    summary: str
    reasoning: str


def verdict(draws: Draws, form: str, holds: bool) -> tuple[str, tuple[str, ...], str]:
    """(form, options, answer) of what is true or not: two thirds are asked, a third are stated."""
    stated = draws.below(3) == 0
    options = TRUE_FALSE if stated else YES_NO
    return f"{form}_stated" if stated else form, options, options[not holds]


def shuffled(draws: Draws, items: Sequence[T]) -> tuple[T, ...]:
    """In an order that is as likely as any other (Fisher and Yates)."""
    left = list(items)
    return tuple(left.pop(draws.below(len(left))) for _ in range(len(left)))


def fillers(draws: Draws, cast: Cast, count: int, fits: Callable[[Pair], bool], near: Pair) -> list[Pair]:
    """`count` further pairs of those that fit; half of them share a colour or a kind with `near`, so that
    neither alone tells what is asked."""
    everyone = [pair for pair in cast.others if fits(pair)]
    similar = [pair for pair in everyone if pair[0] == near[0] or pair[1] == near[1]]
    return [choose(draws, similar if similar and draws.below(2) else everyone) for _ in range(count)]


def number_from(draws: Draws, low: int, high: int) -> int:
    """A whole number from low to high, each as likely."""
    return low + draws.below(high - low + 1)


def arrange(
    draws: Draws, pairs: Sequence[Pair], holds: Callable[[Objects], bool] | None = None
) -> tuple[Object, ...]:
    """An object for each pair, in their order, placed again and again until `holds`."""
    while True:
        discs = shuffled(draws, place(draws, pairs, SMALLEST_ASKED, SMALLEST_ASKED))
        for turn in range(len(pairs)):
            turned = (*discs[turn:], *discs[:turn])
            objects = tuple(
                replace(disc, colour=colour, kind=kind)
                for disc, (colour, kind) in zip(turned, pairs, strict=True)
            )
            if holds is None or holds(objects):
                return objects


def arrange_sized(
    draws: Draws, pairs: Sequence[Pair], size: float, others: tuple[float, float]
) -> tuple[Object, ...]:
    """An object for each pair, in their order: the first of that size, the others of sizes between two,
    to the lesser of which they shrink where it is crowded."""
    while True:
        placed: list[Object] = []
        while len(placed) < len(pairs):
            wanted = draw_size(draws, *others) if placed else size
            found = free_spot(draws, pairs[len(placed)], placed, wanted, others[0], _TRIES)
            if found is None:
                break
            placed.append(found)
        else:
            return tuple(placed)


def share(thing: Object) -> str:
    """`30 %`, its width of the picture's."""
    return f"{round(100 * thing.size)} %"


def placed(thing: Object) -> str:
    """`the red circle in the upper left`"""
    return f"{the(thing)} {where(thing)}"
