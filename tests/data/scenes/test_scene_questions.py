"""Questions over scenes: right by a solver that reads their words alone, balanced, and apart by split."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from transmamba.data.hashing import Draws
from transmamba.data.scenes import Stock
from transmamba.data.scenes.asking import Cast, arrange, fillers
from transmamba.data.scenes.menus import HELD_PAIRS, TRAIN_PAIRS, is_held
from transmamba.data.scenes.programs import (
    COLOURS,
    HELD_KINDS,
    HELD_STYLES,
    KINDS,
    MOST_OBJECTS,
    Object,
    Pair,
)
from transmamba.data.scenes.question_words import HELD_WORDINGS, WORDINGS
from transmamba.data.scenes.questions import CHOICES, TYPES, SceneQuestion, SceneQuestions
from transmamba.data.scenes.splits import SPLITS
from transmamba.data.staged import read_stages
from transmamba.errors import UserError

MANY = 1000
SOME = 200


@cache
def asked(split: str = "train", count: int = MANY) -> tuple[SceneQuestion, ...]:
    questions = SceneQuestions(split=split, count=count)
    return tuple(map(questions.question, range(count)))


# --- a solver that knows the words alone ---


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


@pytest.mark.parametrize(
    "split", ["train", "unseen_pairs", "unseen_objects", "unseen_templates", "swapped_relations"]
)
def test_answers_are_those_of_a_solver_that_reads_the_words(split: str) -> None:
    for question in asked(split, MANY if split == "train" else SOME):
        right = solved(question)
        if isinstance(right, bool):
            right = {("yes", "no"): ("no", "yes"), ("true", "false"): ("false", "true")}[question.options][
                right
            ]
        assert question.answer == right, question
        assert question.answer in question.options and len(set(question.options)) == len(question.options)
        assert question.choices in ((), question.options) and len(question.choices) in (0, CHOICES)
        assert 1 <= len(question.scene.objects) <= MOST_OBJECTS


def test_what_is_asked_can_be_seen() -> None:
    """Extremes, sizes and relations are clear, objects large enough, and discs lie apart."""
    for question in asked():
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


def test_every_type_and_wording_is_used_and_there_are_enough() -> None:
    questions = asked()
    assert {question.type for question in questions} == set(TYPES)
    assert {question.form for question in questions} == set(WORDINGS) == set(HELD_WORDINGS)
    assert all(len(set(texts)) == len(texts) >= 6 for texts in WORDINGS.values())
    assert all(len(texts) >= 2 for texts in HELD_WORDINGS.values())
    assert not {t for texts in WORDINGS.values() for t in texts} & {
        t for ts in HELD_WORDINGS.values() for t in ts
    }
    choices = [question for question in questions if question.choices]
    assert 0.05 < len(choices) / len(questions) < 0.2
    assert {len(question.scene.objects) for question in questions} == set(range(1, MOST_OBJECTS + 1))


# --- what the words tell of the answer ---


def table(known: tuple[SceneQuestion, ...]) -> dict[object, Counter[str]]:
    counts: dict[object, Counter[str]] = defaultdict(Counter)
    for question in known:
        for key in keys(question):
            counts[key][question.answer] += 1
    return counts


def keys(question: SceneQuestion) -> Iterator[object]:
    yield question.text, tuple(sorted(question.choices))
    yield question.text
    yield question.form


def test_a_table_of_training_questions_is_at_chance() -> None:
    """Written out here, so that it depends on nothing else; scripts/blind_answerer.py measures 10,000."""
    counts, right, chance = table(asked(count=3000)), [], []
    for question in asked("test", 2000):
        best = ""
        for key in keys(question):
            fits = {a: n for a, n in counts[key].items() if a in (question.choices or counts[key])}
            if fits:
                best = max(fits, key=lambda answer: fits[answer])
                break
        right.append(best == question.answer)
        chance.append(1 / len(question.options))
    assert np.mean(right) < np.mean(chance) + 3 * np.sqrt(np.mean(chance) / 2000)
    assert 0.29 < np.mean(chance) < 0.33


def test_answers_are_balanced_within_each_form() -> None:
    """A chi-squared test for each form, of how often the answer is at which place among its options."""
    from scipy.stats import chisquare

    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for question in (*asked(count=3000), *asked("test", 2000)):
        groups[question.form, len(question.options)].append(question.options.index(question.answer))
    for (form, options), places in groups.items():
        if len(places) >= 10 * options:
            counts = np.bincount(places, minlength=options)
            assert chisquare(counts).pvalue > 1e-4, (form, counts)


def test_half_of_what_stands_beside_is_like_what_is_asked() -> None:
    cast = Cast(TRAIN_PAIRS, TRAIN_PAIRS, lambda *_: True)
    near: Pair = ("red", "square")
    found = fillers(Draws(1), cast, 1000, lambda pair: pair != near, near)
    similar = np.mean([pair[0] == "red" or pair[1] == "square" for pair in found])
    assert near not in found and 0.5 < similar < 0.7


def test_objects_are_those_that_were_asked_for_in_order() -> None:
    pairs = [("red", "circle"), ("blue", "star"), ("red", "circle"), ("green", "oval")]
    objects = arrange(Draws(3), pairs, lambda found: found[1].x < found[0].x)
    assert [thing.pair for thing in objects] == pairs and objects[1].x < objects[0].x


# --- splits ---


def test_training_shows_nothing_that_is_held_back() -> None:
    for split in ("train", "val", "test", "unseen_templates"):
        for question in asked(split, SOME):
            assert {thing.pair for thing in question.scene.objects} <= set(TRAIN_PAIRS)
            assert question.scene.style not in HELD_STYLES
            wordings = HELD_WORDINGS if split == "unseen_templates" else WORDINGS
            assert any(re.fullmatch(pattern(text), question.text) for text in wordings[question.form])


def test_training_asks_no_relation_that_is_held_back() -> None:
    """Neither order of two kinds is asked where only one may be true."""
    questions = SceneQuestions(types=("relation", "compare"), count=SOME * 5)
    found = 0
    for question in map(questions.question, range(len(questions))):
        slots = parsed(question)
        if "one" in slots:
            kinds = [slots[key].split()[-1] for key in ("one", "two")]
            base = "larger than" if question.form.startswith("larger") else slots.get("relation", "left of")
            opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
            for name in (base, opposite.get(base, "smaller than")):
                assert not is_held(kinds[0], name, kinds[1])
            found += 1
    assert found > SOME


@pytest.mark.parametrize(
    ("split", "held"),
    [
        ("unseen_pairs", HELD_PAIRS),
        ("unseen_objects", tuple((colour, kind) for colour in COLOURS for kind in HELD_KINDS)),
    ],
)
def test_splits_ask_about_what_training_never_shows(split: str, held: tuple[Pair, ...]) -> None:
    counts = Counter(
        (question.type, bool({thing.pair for thing in question.scene.objects} & set(held)))
        for question in asked(split, SOME)
    )
    for kind in ("colour", "shape", "size", "extreme", "relation"):
        assert counts[kind, True] and not counts[kind, False], kind
    for question in asked(split, SOME):
        if question.type == "colour" and not question.choices:
            assert len(question.options) == 10  # all colours of the kind, held back or not
        if question.type == "shape" and not question.choices:
            assert len(question.options) >= len(KINDS) - 2
    assert all(question.scene.style in HELD_STYLES for question in asked("unseen_style", SOME))


def test_twins_are_one_question_with_opposite_answers() -> None:
    questions = SceneQuestions(split="swapped_relations", count=2 * SOME + 1)
    for number in range(0, 2 * SOME, 2):
        one, two = questions.question(number), questions.question(number + 1)
        assert one.text == two.text and {one.answer, two.answer} == set(one.options)
        assert Counter(t.pair for t in one.scene.objects) == Counter(t.pair for t in two.scene.objects)
        assert one.scene.ground == two.scene.ground and one.rationale.caption == two.rationale.caption
        slots = parsed(one)
        kinds = [slots[key].split()[-1] for key in ("one", "two")]
        assert any(is_held(kinds[0], name, kinds[1]) for name in ("left of", "right of", "above", "below"))
        assert questions.twin(number) == number + 1 and questions.twin(number + 1) == number
    assert questions.twin(2 * SOME) is None
    answers = [questions.question(number).answer in ("yes", "true") for number in range(0, 2 * SOME, 2)]
    assert 0.3 < np.mean(answers) < 0.7


# --- determined by their numbers ---


def test_order_of_access_does_not_matter_and_seeds_do() -> None:
    few, many = SceneQuestions(count=30), SceneQuestions(count=10**9)
    forwards = [few.question(number) for number in range(30)]
    assert [many.question(number) for number in reversed(range(30))] == forwards[::-1]
    assert SceneQuestions(seed=1).question(3) != few.question(3)
    assert len({asked(split, 5)[1].text for split in SPLITS}) > 5
    assert few.picture(2, 32).shape == (32, 32, 3) and few.picture(2).shape == (64, 64, 3)
    with pytest.raises(IndexError):
        few.question(30)


def test_another_process_asks_the_same() -> None:
    program = (
        "import hashlib\nfrom transmamba.data.scenes.questions import SceneQuestions\n"
        "q = SceneQuestions()\n"
        "print(hashlib.sha256(repr([q.question(i) for i in range(40)]).encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(part for part in sys.path if part), "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == hashlib.sha256(repr(list(asked()[:40])).encode()).hexdigest()


# --- reasons ---


def test_reasons_say_what_is_there_and_end_in_the_answer() -> None:
    for question in asked(count=SOME):
        reasons, objects = question.rationale, question.scene.objects
        for colour, kind in {thing.pair for thing in objects}:
            assert f"{colour} {kind}" in reasons.caption
        written = reasons.written(question.answer)
        assert read_stages(written) == (reasons, question.answer)
        if question.type in ("colour", "shape", "count"):
            assert question.answer in re.split(r"[ .;,]", reasons.reasoning)
        if question.type == "extreme":  # all in order, the first one last
            told = reasons.reasoning.partition(": ")[2].partition(";")[0].split(", ")
            assert len(told) == len(objects) and question.answer in told[0]
        if question.form in ("relation", "relation_stated"):
            relation = parsed(question)["relation"]
            truly = f"is {relation} the " in reasons.reasoning
            assert truly == (question.answer in ("yes", "true"))


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(UserError, match="type of questions 'color' is unknown; did you mean 'colour'"):
        SceneQuestions(types=("color",))
    with pytest.raises(UserError, match="types is empty; write some of count"):
        SceneQuestions(types=())
    with pytest.raises(UserError, match="asks for relations alone"):
        SceneQuestions(split="swapped_relations", types=("count",))
    with pytest.raises(UserError, match="leave the stock's tiles out"):
        SceneQuestions(stock=Stock(emoji={"smile": np.zeros((4, 8, 8), dtype=np.uint8)}))
    with pytest.raises(UserError, match="split 'tset' is unknown; did you mean 'test'"):
        SceneQuestions(split="tset")


def test_photographs_may_lie_behind() -> None:
    stock = Stock(photographs=(np.full((20, 30, 3), 77, dtype=np.uint8),))
    questions = SceneQuestions(stock=stock, count=30)
    behind = [number for number in range(30) if questions.question(number).scene.ground.name == "photograph"]
    assert behind and (questions.picture(behind[0]) == 77).all(-1).mean() > 0.2
