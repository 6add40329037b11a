"""Who answers questions over scenes without the code that asks them: a solver that knows the words and where
the objects are, and a table of training questions that sees no picture."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from transmamba.data.scenes.programs import COLOURS, HELD_KINDS, KINDS, Object
from transmamba.data.scenes.question_words import HELD_WORDINGS, WORDINGS
from transmamba.data.scenes.questions import SceneQuestion

THING = rf"(?:an? )?(?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join((*KINDS, *HELD_KINDS, 'shape'))})(?:e?s)?"
SLOTS = defaultdict(
    lambda: THING,
    colour="|".join(COLOURS),
    relation="left of|right of|above|below",
    superlative="leftmost|rightmost|topmost|lowest|largest|smallest",
)


def pattern(wording: str) -> str:
    escaped = re.escape(wording).replace(r"\{", "{").replace(r"\}", "}")
    return re.sub(r"\{(\w+)\}", lambda slot: f"(?P<{slot[1]}>{SLOTS[slot[1]]})", escaped)


def parsed(question: SceneQuestion) -> dict[str, str]:
    """What stands in the slots of the wording that the question is in."""
    wordings = (*WORDINGS[question.form], *HELD_WORDINGS[question.form])
    found = [match for text in wordings if (match := re.fullmatch(pattern(text), question.text))]
    assert found, question.text
    return found[0].groupdict()


def meant(question: SceneQuestion, words: str) -> list[Object]:
    """The objects that `red circles`, `a red shape` or `circle` names."""
    words = re.sub(r"^an? ", "", words)
    found = []
    for thing in question.scene.objects:
        colour, kind = thing.pair
        plural = kind + ("es" if kind.endswith(("s", "x")) else "s")
        names = {
            f"{before}{after}".strip()
            for before in ("", f"{colour} ")
            for after in (kind, plural, "shape", "shapes")
        }
        if words in names:
            found.append(thing)
    return found


def only(question: SceneQuestion, words: str) -> Object:
    (thing,) = meant(question, words)
    return thing


FURTHEST = {
    "leftmost": lambda thing: -thing.x,
    "rightmost": lambda thing: thing.x,
    "topmost": lambda thing: -thing.y,
    "lowest": lambda thing: thing.y,
    "largest": lambda thing: thing.size,
    "smallest": lambda thing: -thing.size,
}


def relation_of(one: Object, two: Object) -> str:
    right, down = one.x - two.x, one.y - two.y
    if abs(right) > abs(down):
        return "left" if right < 0 else "right"
    return "above" if down < 0 else "below"


def solved(question: SceneQuestion) -> str | bool:
    """The answer, or whether what is said is so."""
    form, slots = question.form.removesuffix("_stated"), parsed(question)
    things, others = (meant(question, slots[key]) if key in slots else [] for key in ("things", "others"))
    if form == "count":
        return str(len(things))
    if form == "exist":
        return bool(meant(question, slots["a_thing"]))
    if form == "colour":
        return only(question, slots["thing"]).colour
    if form == "shape":
        return only(question, f"{slots['colour']} shape").kind
    if form == "size":
        width = only(question, slots["thing"]).size
        assert not 0.15 < width < 0.25
        return "large" if width > 0.2 else "small"
    if form in ("extreme_colour", "extreme_shape"):
        thing = max(question.scene.objects, key=FURTHEST[slots["superlative"]])
        return thing.colour if form == "extreme_colour" else thing.kind
    if form == "more":
        return len(things) > len(others)
    if form == "as_many":
        return len(things) == len(others)
    if form == "which_more":
        assert len(things) != len(others)
        return slots["things"] if len(things) > len(others) else slots["others"]
    one, two = only(question, slots["one"]), only(question, slots["two"])
    if form == "larger":
        return one.size > two.size
    assert form in ("relation", "direction")
    return (
        relation_of(one, two) == slots["relation"].split()[0]
        if "relation" in slots
        else relation_of(one, two)
    )


def answered(question: SceneQuestion) -> str:
    """The same in the words of the question's options."""
    right = solved(question)
    if isinstance(right, bool):
        return ("yes" if right else "no") if "yes" in question.options else ("true" if right else "false")
    return right


def assert_is_clear(question: SceneQuestion) -> None:
    """Extremes, sizes and relations are clear, objects large enough, and discs lie apart."""
    things = question.scene.objects
    assert all(thing.size >= 0.1 for thing in things)
    for number, one in enumerate(things):
        for two in things[:number]:
            assert np.hypot(one.x - two.x, one.y - two.y) >= (one.size + two.size) / 2
    if question.form.startswith("extreme"):
        superlative = parsed(question)["superlative"]
        first, second = sorted(map(FURTHEST[superlative], things), reverse=True)[:2]
        ratio = max(first / second, second / first)
        assert ratio >= 2 if superlative in ("largest", "smallest") else first - second >= 0.04
    if question.type == "relation":
        one, two = (only(question, parsed(question)[key]) for key in ("one", "two"))
        right, down = abs(one.x - two.x), abs(one.y - two.y)
        assert max(right, down) >= 0.08 and max(right, down) > 1.2 * min(right, down)
    if question.form.startswith("larger"):
        sizes = [only(question, parsed(question)[key]).size for key in ("one", "two")]
        assert max(sizes) >= 2 * min(sizes)


def table(known: Sequence[SceneQuestion]) -> dict[object, Counter[str]]:
    counts: dict[object, Counter[str]] = defaultdict(Counter)
    for question in known:
        for key in keys(question):
            counts[key][question.answer] += 1
    return counts


def keys(question: SceneQuestion) -> Iterator[object]:
    yield question.text, tuple(sorted(question.choices))
    yield question.text
    yield question.form


def shares_blind(
    known: Sequence[SceneQuestion], asked: Sequence[SceneQuestion]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Of which questions a table of the known ones is right, and the chance of each."""
    counts, right = table(known), []
    for question in asked:
        best = ""
        for key in keys(question):
            fits = {a: n for a, n in counts[key].items() if a in (question.choices or counts[key])}
            if fits:
                best = max(fits, key=lambda answer: fits[answer])
                break
        right.append(best == question.answer)
    return np.array(right), np.array([1 / len(question.options) for question in asked])


def places_of_answers(asked: Iterable[SceneQuestion]) -> dict[tuple[str, int], npt.NDArray[np.int64]]:
    """How often the answer is at which place among its options, by form and how many options there are."""
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for question in asked:
        groups[question.form, len(question.options)].append(question.options.index(question.answer))
    return {
        (form, options): np.bincount(places, minlength=options)
        for (form, options), places in groups.items()
        if len(places) >= 10 * options
    }
