"""Questions over scenes: right by a solver that reads their words alone, balanced, and apart by split."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest
from solver import answered, assert_is_clear, parsed, pattern, places_of_answers, shares_blind

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


@pytest.mark.parametrize(
    "split", ["train", "unseen_pairs", "unseen_objects", "unseen_templates", "swapped_relations"]
)
def test_answers_are_those_of_a_solver_that_reads_the_words(split: str) -> None:
    for question in asked(split, MANY if split == "train" else SOME):
        assert question.answer == answered(question), question
        assert question.answer in question.options and len(set(question.options)) == len(question.options)
        assert question.choices in ((), question.options) and len(question.choices) in (0, CHOICES)
        assert 1 <= len(question.scene.objects) <= MOST_OBJECTS


def test_what_is_asked_can_be_seen() -> None:
    """Extremes, sizes and relations are clear, objects large enough, and discs lie apart."""
    for question in asked():
        assert_is_clear(question)


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


def test_a_table_of_training_questions_is_at_chance() -> None:
    """Written out here, so that it depends on nothing else; scripts/blind_answerer.py measures 10,000."""
    right, chance = shares_blind(asked(count=3000), asked("test", 2000))
    assert np.mean(right) < np.mean(chance) + 3 * np.sqrt(np.mean(chance) / 2000)
    assert 0.29 < np.mean(chance) < 0.33


def test_answers_are_balanced_within_each_form() -> None:
    """A chi-squared test for each form, of how often the answer is at which place among its options."""
    from scipy.stats import chisquare

    for form, counts in places_of_answers((*asked(count=3000), *asked("test", 2000))).items():
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
