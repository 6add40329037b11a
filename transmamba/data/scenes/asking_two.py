"""Questions about two objects or two sorts of them: which are more, which is larger, and how two lie to each
other. As in `asking_one`, the words of a question say nothing about its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..hashing import Draws
from .asking import Cast, Objects, Phrase, Posed, arrange, fillers, share, shuffled, verdict
from .captions import the, where
from .programs import OPPOSITES, Object, Pair, between
from .sampling import choose

MOST_COMPARED = 4  # of one sort
SPATIAL = ("left of", "right of", "above", "below")
DIRECTIONS = dict(zip(SPATIAL, ("left", "right", "above", "below"), strict=True))

Numbers = tuple[int, int]
_NUMBERS = tuple(
    (one, two) for one in range(MOST_COMPARED + 1) for two in range(MOST_COMPARED + 1) if 0 < one + two < 8
)
_MORE = tuple(both for both in _NUMBERS if both[0] > both[1])
_FEWER = tuple(both for both in _NUMBERS if both[0] < both[1])
_AS_MANY = tuple(both for both in _NUMBERS if both[0] == both[1])


def more(draws: Draws, cast: Cast) -> Posed:
    """Whether there are more of one sort than of another; where not, there are as many in a quarter."""
    truly = draws.below(2) == 0
    form, options, answer = verdict(draws, "more", truly)
    numbers = _MORE if truly else _AS_MANY if draws.below(4) == 0 else _FEWER
    return _counted(draws, cast, form, options, answer, numbers)


def as_many(draws: Draws, cast: Cast) -> Posed:
    """Whether there are as many of one sort as of another."""
    truly = draws.below(2) == 0
    form, options, answer = verdict(draws, "as_many", truly)
    numbers = _AS_MANY if truly else (*_MORE, *_FEWER)
    return _counted(draws, cast, form, options, answer, numbers)


def which_more(draws: Draws, cast: Cast) -> Posed:
    """Of which of two sorts there are more; the answer is its name."""
    first = draws.below(2) == 0
    return _counted(draws, cast, "which_more", (), "", _MORE if first else _FEWER)


def _counted(
    draws: Draws, cast: Cast, form: str, options: Sequence[str], answer: str, allowed: Sequence[Numbers]
) -> Posed:
    """Two sorts, so many of each as is allowed and a scene may have; where no answer is given, it is the name
    of the one that is more."""
    numbers = choose(draws, [both for both in allowed if sum(both) <= cast.most])
    sorts = _two_sorts(draws, cast)
    names = sorts[0].several, sorts[1].several
    pairs: list[Pair] = []
    for sort, number in zip(sorts, numbers, strict=True):
        meant = tuple(pair for pair in (*cast.subjects, *cast.others) if sort.fits(pair))
        pairs += [choose(draws, meant) for _ in range(number)]
    further = cast.further(draws, len(pairs))
    near = pairs[0]
    pairs += fillers(draws, cast, further, lambda pair: not any(sort.fits(pair) for sort in sorts), near)
    one, two = (
        f"{number} {sort.one if number == 1 else sort.several}"
        for number, sort in zip(numbers, sorts, strict=True)
    )
    compared = "as many {} as {}" if numbers[0] == numbers[1] else "fewer {} than {}"
    compared = "more {} than {}" if numbers[0] > numbers[1] else compared
    return Posed(
        form,
        {"things": names[0], "others": names[1]},
        tuple(options) or names,
        answer or names[numbers[0] < numbers[1]],
        arrange(draws, pairs),
        f"i count the {names[0]} and the {names[1]} and compare.",
        f"i see {one} and {two}: {compared.format(*names)}.",
    )


def _two_sorts(draws: Draws, cast: Cast) -> tuple[Phrase, Phrase]:
    """Two colours, two kinds, or two pairs: no object is of both."""
    level = draws.below(3)
    subject = choose(draws, cast.subjects)
    own = (Phrase(*subject), Phrase(colour=subject[0]), Phrase(kind=subject[1]))[level]
    while True:
        pair = choose(draws, cast.others)
        other = (Phrase(*pair), Phrase(colour=pair[0]), Phrase(kind=pair[1]))[level]
        if other != own:
            return (own, other) if draws.below(2) else (other, own)


def larger(draws: Draws, cast: Cast) -> Posed:
    """Whether one is larger than another."""
    truly = draws.below(2) == 0
    form, options, answer = verdict(draws, "larger", truly)
    one, two = _two_named(draws, cast, ("larger than",))
    relation = "larger than" if truly else "smaller than"
    objects = _related(draws, cast, one, two, relation)
    reasoning = (
        f"{the(objects[0])} is about {share(objects[0])} of the picture wide, {the(objects[1])} "
        f"{share(objects[1])}: {the(objects[0])} is {relation} {the(objects[1])}."
    )
    return _of_two(form, {}, options, answer, objects, "i compare the sizes of", reasoning)


def relation(draws: Draws, cast: Cast) -> Posed:
    """Whether one is left of, right of, above or below another."""
    asked = choose(draws, SPATIAL)
    truly = draws.below(2) == 0
    form, options, answer = verdict(draws, "relation", truly)
    one, two = _two_named(draws, cast, (asked,))
    holds = asked if truly else OPPOSITES[asked]
    objects = _related(draws, cast, one, two, holds)
    if cast.twin:
        first, second = objects[:2]
        objects = (_moved(first, second), _moved(second, first), *objects[2:])
        holds, answer = OPPOSITES[holds], options[answer == options[0]]
    reasoning = _told(objects, holds)
    return _of_two(form, {"relation": asked}, options, answer, objects, "i find", reasoning)


def direction(draws: Draws, cast: Cast) -> Posed:
    """On which side of another one is."""
    holds = choose(draws, SPATIAL)
    one, two = _two_named(draws, cast, SPATIAL)
    objects = _related(draws, cast, one, two, holds)
    options = tuple(DIRECTIONS.values())
    return _of_two("direction", {}, options, DIRECTIONS[holds], objects, "i find", _told(objects, holds))


def _two_named(draws: Draws, cast: Cast, asked: Sequence[str]) -> tuple[Pair, Pair]:
    """Two pairs of which each of the relations may be asked."""
    while True:
        two = shuffled(draws, (choose(draws, cast.subjects), choose(draws, cast.others)))
        if two[0] != two[1] and all(cast.states(two[0][1], name, two[1][1]) for name in asked):
            return two[0], two[1]


def _related(draws: Draws, cast: Cast, one: Pair, two: Pair, name: str) -> tuple[Object, ...]:
    """A scene in which the first object clearly is `name` the second; no other is called as they are."""
    further = cast.further(draws, 2)
    others = fillers(draws, cast, further, lambda pair: pair not in (one, two), choose(draws, (one, two)))
    return arrange(draws, [one, two, *others], partial(_is, name))


def _is(name: str, objects: Objects) -> bool:
    return name in between(objects[0], objects[1])


def _moved(thing: Object, place: Object) -> Object:
    """In the other's place and size."""
    return replace(thing, x=place.x, y=place.y, size=place.size)


def _told(objects: Objects, name: str) -> str:
    one, two = objects[:2]
    return f"{the(one)} is {where(one)}, {the(two)} {where(two)}: {the(one)} is {name} {the(two)}."


def _of_two(
    form: str,
    slots: dict[str, str],
    options: tuple[str, ...],
    answer: str,
    objects: tuple[Object, ...],
    does: str,
    reasoning: str,
) -> Posed:
    one, two = (Phrase(*thing.pair).one for thing in objects[:2])
    slots = {**slots, "one": one, "two": two}
    return Posed(form, slots, options, answer, objects, f"{does} the {one} and the {two}.", reasoning)
