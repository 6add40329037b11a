"""Questions over scenes of other numbers of objects: right, clear and balanced too; the usual ones stay."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from scipy.stats import chisquare
from solver import answered, assert_is_clear, parsed, places_of_answers, shares_blind

from transmamba.config.registry import QUESTIONS
from transmamba.data.scenes import Object
from transmamba.data.scenes.captions import listing
from transmamba.data.scenes.questions import TYPES, SceneQuestion, SceneQuestions
from transmamba.data.scenes.splits import SPLITS
from transmamba.errors import UserError

CROWDED = (8, 10)
# of 300 questions a split, as they were drawn before scenes could have more or fewer objects
USUAL = {
    "train": "93f9564ce68f4219",
    "val": "8296b1fe47b606a6",
    "test": "8ebc277b5a077df5",
    "unseen_pairs": "525d7cd68ec96a0c",
    "unseen_objects": "9e4c5988233cfcb8",
    "unseen_style": "e12651b735ff32b2",
    "unseen_templates": "5d1a4c2f5677f682",
    "swapped_relations": "0dd74f125d01dfcb",
}
WORDS = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)


@cache
def asked(
    numbers: tuple[int, int] = CROWDED,
    count: int = 300,
    split: str = "train",
    types: tuple[str, ...] = tuple(TYPES),
) -> tuple[SceneQuestion, ...]:
    fewest, most = numbers
    questions = SceneQuestions(split=split, count=count, types=types, fewest=fewest, most=most)
    return tuple(map(questions.question, range(count)))


def told(question: SceneQuestion) -> str:
    """All of a question, lengths to 1e-9: powers may differ by a rounding between machines."""
    things = [
        (thing.kind, thing.colour, *(round(v, 9) for v in (thing.x, thing.y, thing.size, thing.angle)))
        for thing in question.scene.objects
    ]
    words = (question.type, question.form, question.text, question.answer, question.choices, question.options)
    return repr((*words, question.rationale, things, question.scene.ground, question.scene.style))


@pytest.mark.parametrize("split", SPLITS)
def test_usual_questions_are_those_of_before(split: str) -> None:
    questions = SceneQuestions(split=split, count=300)
    drawn = "\n".join(told(questions.question(number)) for number in range(300))
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == USUAL[split]


def assert_is_right(question: SceneQuestion) -> None:
    """By the solver, clear, and with a caption and reasons that say what is there."""
    assert question.answer == answered(question), question
    assert question.answer in question.options and len(set(question.options)) == len(question.options)
    assert_is_clear(question)
    assert Counter(re.split(", | and ", caption_of(question))) == Counter(listed(question.scene.objects))
    if question.type == "count" and (
        meant := re.fullmatch("there (?:is|are) (.*); that makes .*", reason(question))
    ):
        assert sum(map(number_of, re.split(", | and ", meant[1]))) == int(question.answer)


def caption_of(question: SceneQuestion) -> str:
    (found,) = re.findall("the picture shows (.*) on [^,]*[.]", question.rationale.caption)
    return str(found)


def reason(question: SceneQuestion) -> str:
    return question.rationale.reasoning


def listed(objects: tuple[Object, ...]) -> list[str]:
    """`a red circle`, `two blue crosses`"""
    found = []
    for (colour, kind), count in Counter(thing.pair for thing in objects).items():
        ending = "" if count == 1 else "es" if kind[-1] in "sx" else "s"
        article = "an" if colour[0] in "aeiou" else "a"
        found.append(f"{article if count == 1 else WORDS[count]} {colour} {kind}{ending}")
    return found


def number_of(words: str) -> int:
    first = words.split()[0]
    return 1 if first in ("a", "an") else WORDS.index(first)


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_is_right_of_eight_to_ten_objects(kind: str) -> None:
    questions = asked(types=(kind,))
    for question in questions:
        assert_is_right(question)
    assert Counter(len(question.scene.objects) for question in questions).keys() == {8, 9, 10}
    assert {question.type for question in questions} == {kind}
    if kind == "extreme":
        superlatives = {parsed(question)["superlative"] for question in questions}
        assert superlatives == {"leftmost", "rightmost", "topmost", "lowest", "largest", "smallest"}
    if kind == "count":
        for question in questions:
            options = ("8", "9", "10") if parsed(question)["things"] == "shapes" else tuple("012345")
            assert set(question.options) <= set(options) and len(question.options) in (len(options), 4)


@pytest.mark.parametrize("split", [split for split in SPLITS if split != "train"])
def test_each_split_is_right_of_eight_to_ten_objects(split: str) -> None:
    for question in asked(split=split):
        assert_is_right(question)
        assert 8 <= len(question.scene.objects) <= 10


def test_twins_are_opposites_in_crowded_scenes() -> None:
    questions = asked(split="swapped_relations")
    for one, two in zip(questions[::2], questions[1::2], strict=True):
        assert one.text == two.text and {one.answer, two.answer} == set(one.options)
        assert Counter(t.pair for t in one.scene.objects) == Counter(t.pair for t in two.scene.objects)
        for thing, other in zip(one.scene.objects, two.scene.objects, strict=True):
            named = [parsed(one)[key] == f"{thing.colour} {thing.kind}" for key in ("one", "two")]
            assert (thing == other) != any(named)


@pytest.mark.parametrize("numbers", [(1, 2), (2, 2), (3, 4), (5, 6), (7, 7), (1, 12), (11, 12), (12, 12)])
def test_other_numbers_of_objects(numbers: tuple[int, int]) -> None:
    questions = asked(numbers, 240)
    for question in questions:
        assert_is_right(question)
        assert numbers[0] <= len(question.scene.objects) <= numbers[1]
        assert len(question.options) > 1
    assert {question.type for question in questions} == set(TYPES)


def test_words_alone_are_at_chance_of_crowded_scenes() -> None:
    known, test = asked(count=3000), asked(count=2000, split="test")
    right, chance = shares_blind(known, test)
    assert right.mean() < chance.mean() + 3 * np.sqrt(chance.mean() / len(test))
    for kind in TYPES:
        own = np.array([question.type == kind for question in test])
        expected = chance[own].mean()
        error = np.sqrt(expected * (1 - expected) / own.sum())
        assert right[own].mean() < expected + 4 * error, kind
    for form, counts in places_of_answers((*known, *test)).items():
        assert chisquare(counts).pvalue > 1e-4, (form, counts)


def test_what_stands_beside_is_often_like_what_is_asked() -> None:
    """Of the only one of a kind: its colour is that of others as often as where scenes have fewer objects."""
    shares = []
    for numbers in ((1, 8), CROWDED):
        similar = []
        for question in asked(numbers, types=("colour",)):
            others = [
                thing.colour for thing in question.scene.objects if thing.kind != parsed(question)["thing"]
            ]
            similar += [colour == question.answer for colour in others]
        shares.append(np.mean(similar))
    assert min(shares) > 0.3 and abs(shares[0] - shares[1]) < 0.06


def test_many_of_a_sort_have_a_word() -> None:
    for count, word in enumerate(WORDS[2:], start=2):
        assert listing([Object("circle", "red", 0.5, 0.5, 0.1)] * count) == f"{word} red circles"


@pytest.mark.parametrize(
    ("fewest", "most", "said"),
    [
        (9, 8, "fewest 9 is above most 8; write no more, or a larger most, up to 12"),
        (0, 8, "fewest 0: write how many objects a scene has at least, from 1"),
        (1, 1, "most 1: write 2, to be compared, to 12"),
        (
            8,
            13,
            "most 13: write 2, to be compared, to 12, that fit where each has at least a tenth of the side",
        ),
    ],
)
def test_numbers_that_no_scene_has_are_refused(fewest: int, most: int, said: str) -> None:
    for make in (SceneQuestions, QUESTIONS["scenes"]):
        with pytest.raises(UserError, match=re.escape(said)) as raised:
            make(fewest=fewest, most=most)
        assert "\n" not in str(raised.value)


def test_the_reader_passes_them_on() -> None:
    reader = QUESTIONS["scenes"](fewest=8, most=10, count_train=20, count_test=20, side=112)
    for split in ("train", "test"):
        source = reader.build(split)
        theirs = asked(split=split)
        for number in range(20):
            item = source.item(number)
            assert (item.question, item.answers) == (theirs[number].text, (theirs[number].answer,))
        assert source.item(0).pictures[0].image().size == (112, 112)
