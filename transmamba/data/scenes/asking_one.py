"""Questions about one object, or about all of a sort: how many, whether any, which colour, shape and size,
and what stands out. Each draws what it asks first and the answer then, evenly, and looks for a scene that
fits: the words of a question say nothing about its answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..hashing import Draws
from .asking import (
    SMALLEST_ASKED,
    Cast,
    Objects,
    Phrase,
    Posed,
    arrange,
    arrange_sized,
    fillers,
    number_from,
    placed,
    share,
    verdict,
)
from .captions import listing, the, with_article
from .programs import LARGER, LARGEST, Object, Pair
from .sampling import choose, draw_size, largest_of

MOST_COUNTED = 5  # of those that a colour or a kind names
# Of how many objects sizes are drawn as in any scene, until one has the size that is asked for, or is so much
# larger than all others that it is so whatever their kinds: few scenes of more are such. Where all have more,
# the size of that one is drawn first.
MOST_WITH_SIZE, MOST_WITH_EXTREME = 6, 4
SMALL, LARGE = 0.15, 0.25  # of the picture's side; a shape that is asked about is not in between
STANDS_OUT = 0.04  # by how much of the side the leftmost is left of the next one, at the least

# superlative -> (what is compared, whether the smallest value is meant, how the order is told)
EXTREMES: dict[str, tuple[Callable[[Object], float], bool, str]] = {
    "leftmost": (lambda thing: thing.x, True, "from left to right"),
    "rightmost": (lambda thing: thing.x, False, "from right to left"),
    "topmost": (lambda thing: thing.y, True, "from top to bottom"),
    "lowest": (lambda thing: thing.y, False, "from bottom to top"),
    "largest": (lambda thing: thing.size, False, "from the largest on"),
    "smallest": (lambda thing: thing.size, True, "from the smallest on"),
}
_OF_SIZE = ("largest", "smallest")


def count(draws: Draws, cast: Cast) -> Posed:
    """How many shapes there are (1 to 8, or as many as scenes have), or how many of a colour, a kind or both
    (0 to 5). All are not counted where every scene has as many."""
    subject = choose(draws, cast.subjects)
    everything = (Phrase(),) if cast.fewest < cast.most else ()
    phrase = choose(draws, (*everything, *_phrases(subject)))
    low, high = (cast.fewest, cast.most) if phrase == Phrase() else (0, min(MOST_COUNTED, cast.most))
    options = tuple(map(str, range(low, high + 1)))
    answer = choose(draws, options)
    objects = arrange(draws, _some(draws, cast, subject, phrase, int(answer)))
    meant = phrase.among(objects)
    reasoning = f"none of the shapes is {phrase.indefinite}; that makes 0."
    if meant:
        reasoning = f"there {'is' if len(meant) == 1 else 'are'} {listing(meant)}; that makes {answer}."
    slots = {"things": phrase.several}
    return Posed("count", slots, options, answer, objects, f"i count the {phrase.several}.", reasoning)


def exist(draws: Draws, cast: Cast) -> Posed:
    """Whether there is one of a colour, a kind or both."""
    subject = choose(draws, cast.subjects)
    phrase = choose(draws, _phrases(subject))
    there = draws.below(2) == 0
    form, options, answer = verdict(draws, "exist", there)
    number = number_from(draws, 1, min(3, cast.most)) if there else 0
    objects = arrange(draws, _some(draws, cast, subject, phrase, number))
    meant = phrase.among(objects)
    reasoning = f"among the shapes there is {listing(meant)}." if meant else ""
    reasoning = reasoning or f"none of the shapes is {phrase.indefinite}."
    slots = {"a_thing": phrase.indefinite}
    return Posed(form, slots, options, answer, objects, f"i look for {phrase.indefinite}.", reasoning)


def colour(draws: Draws, cast: Cast) -> Posed:
    """Of the only one of a kind."""
    kind = choose(draws, cast.subjects)[1]
    answers, options = cast.parts(0, Phrase(kind=kind))
    answer = choose(draws, answers)
    objects = _only(draws, cast, (answer, kind), Phrase(kind=kind))
    summary = f"i find the {kind} and name its colour."
    reasoning = f"the only {kind} is {placed(objects[0])}; its colour is {answer}."
    return Posed("colour", {"thing": kind}, options, answer, objects, summary, reasoning)


def shape(draws: Draws, cast: Cast) -> Posed:
    """Of the only one of a colour."""
    named = choose(draws, cast.subjects)[0]
    answers, options = cast.parts(1, Phrase(colour=named))
    answer = choose(draws, answers)
    objects = _only(draws, cast, (named, answer), Phrase(colour=named))
    summary = f"i find the {named} shape and name it."
    reasoning = f"the only {named} shape is {placed(objects[0])}; it is {with_article(answer)}."
    return Posed("shape", {"colour": named}, options, answer, objects, summary, reasoning)


def size(draws: Draws, cast: Cast) -> Posed:
    """Whether one is large or small beside the picture."""
    subject, options = choose(draws, cast.subjects), ("large", "small")
    answer = choose(draws, options)
    most = _most(cast, MOST_WITH_SIZE)
    further = cast.further(draws, 1, most=most)
    pairs = [subject, *fillers(draws, cast, further, lambda pair: pair != subject, subject)]
    if most > MOST_WITH_SIZE:
        objects = arrange_sized(draws, pairs, *_sizes(draws, answer, len(pairs)))
    else:
        objects = arrange(draws, pairs, partial(_is_sized, answer))
    asked = objects[0]
    reasoning = f"{placed(asked)} is about {share(asked)} of the picture wide, which is {answer}."
    slots = {"thing": Phrase(*subject).one}
    return Posed("size", slots, options, answer, objects, f"i judge the size of {the(asked)}.", reasoning)


def extreme(draws: Draws, cast: Cast) -> Posed:
    """The colour or the shape of the one that is furthest to a side, the largest or the smallest."""
    superlative, part = choose(draws, tuple(EXTREMES)), draws.below(2)
    # the answer first, evenly, then the other half of the pair
    answers, options = cast.parts(part, Phrase())
    answer = choose(draws, answers)
    subject = choose(draws, tuple(pair for pair in cast.subjects if pair[part] == answer))
    most = _most(cast, MOST_WITH_EXTREME) if superlative in _OF_SIZE else cast.most
    further = cast.further(draws, 1, least=1, most=most)
    pairs = [subject, *fillers(draws, cast, further, lambda pair: True, subject)]
    if superlative in _OF_SIZE and most > MOST_WITH_EXTREME:
        objects = arrange_sized(draws, pairs, *_sizes(draws, superlative, len(pairs)))
    else:
        objects = arrange(draws, pairs, partial(_stands_out, superlative))
    value, least, order = EXTREMES[superlative]
    told = sorted(objects, key=value, reverse=not least)
    reasoning = f"{order}: {', '.join(the(thing) for thing in told)}; the first is {the(told[0])}."
    summary = f"i find the {superlative} shape and name {('its colour', 'it')[part]}."
    form, slots = ("extreme_colour", "extreme_shape")[part], {"superlative": superlative}
    return Posed(form, slots, options, answer, objects, summary, reasoning)


def _phrases(subject: Pair) -> tuple[Phrase, Phrase, Phrase]:
    return Phrase(*subject), Phrase(colour=subject[0]), Phrase(kind=subject[1])


def _some(draws: Draws, cast: Cast, subject: Pair, phrase: Phrase, number: int) -> list[Pair]:
    """Pairs of which `number` are meant by the phrase, one of them the subject, and further ones up to
    as many as a scene has."""
    meant = tuple(pair for pair in (*cast.subjects, *cast.others) if phrase.fits(pair))
    pairs = ([subject] + [choose(draws, meant) for _ in range(number - 1)])[:number]
    if phrase == Phrase():
        return pairs
    further = cast.further(draws, number)
    return pairs + fillers(draws, cast, further, lambda pair: not phrase.fits(pair), subject)


def _only(draws: Draws, cast: Cast, subject: Pair, phrase: Phrase) -> tuple[Object, ...]:
    """A scene with the subject, whom alone the phrase means; the subject first."""
    further = cast.further(draws, 1, least=1)
    return arrange(
        draws, [subject, *fillers(draws, cast, further, lambda pair: not phrase.fits(pair), subject)]
    )


def _most(cast: Cast, by_chance: int) -> int:
    """Objects of a scene in which sizes are asked for: no more than that where scenes may have so few."""
    return min(by_chance, cast.most) if cast.fewest <= by_chance else cast.most


def _sizes(draws: Draws, wanted: str, count: int) -> tuple[float, tuple[float, float]]:
    """The size of the one of `count` objects that is asked about, and between which the others are."""
    usual = largest_of(count)
    if wanted == "largest":
        size = draw_size(draws, 1.2 * LARGER * SMALLEST_ASKED, LARGEST)
        return size, (SMALLEST_ASKED, min(usual, size / LARGER))
    if wanted == "smallest":
        size = draw_size(draws, SMALLEST_ASKED, usual / (1.2 * LARGER))
        return size, (LARGER * size, usual)
    between = (LARGE, max(usual, 1.2 * LARGE)) if wanted == "large" else (SMALLEST_ASKED, SMALL)
    return draw_size(draws, *between), (SMALLEST_ASKED, usual)


def _is_sized(wanted: str, objects: Objects) -> bool:
    return objects[0].size >= LARGE if wanted == "large" else objects[0].size <= SMALL


def _stands_out(superlative: str, objects: Objects) -> bool:
    """Whether the first clearly is what the superlative says, by its centre and by its edge."""
    first, others = objects[0], objects[1:]
    if superlative == "largest":
        return all(first.size >= LARGER * other.size for other in others)
    if superlative == "smallest":
        return all(other.size >= LARGER * first.size for other in others)
    value, least, _ = EXTREMES[superlative]
    sign = 1 if least else -1
    centres = [sign * value(thing) for thing in objects]
    edges = [centre - thing.size / 2 for centre, thing in zip(centres, objects, strict=True)]
    return min(centres[1:]) - centres[0] >= STANDS_OUT and edges[0] < min(edges[1:])
