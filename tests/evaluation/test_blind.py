"""The answerer that has a table of training questions and no pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from transmamba.config.registry import QUESTIONS
from transmamba.data.questions.source import Item
from transmamba.evaluation.answers import judge
from transmamba.evaluation.blind import LookupAnswerer


def item(question: str, answer: str, type: str = "", choices: tuple[str, ...] = ()) -> Item:
    return Item(question=question, answers=(answer,), type=type, choices=choices)


KNOWN = LookupAnswerer.of(
    [
        *[item("how many?", "2", "count")] * 2,
        item("how many?", "3", "count"),
        *[item("how many dogs?", "3", "count")] * 4,
        *[item("what?", "a dog")] * 9,
        *[item("which?", "red", "colour", ("red", "blue"))] * 2,
        *[item("which?", "blue", "colour", ("green", "blue"))] * 3,
    ]
)


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (item("how many?", "5", "count"), "2"),  # the question itself
        (item("how many cats?", "5", "count"), "3"),  # its type
        (item("why?", "so", "reason"), "a dog"),  # all
        (item("which?", "red", "colour", ("blue", "red")), "red"),  # the same choices in another order
        (
            item("which?", "red", "colour", ("blue", "red", "grey")),
            "blue",
        ),  # the most frequent that is offered
        (item("where?", "here", "place", ("there", "here")), "there"),  # nothing is known of any
    ],
)
def test_it_answers_as_most_of_what_is_most_like_it(asked: Item, answer: str) -> None:
    assert KNOWN.answer(asked) == answer


def test_it_knows_which_questions_it_has_seen() -> None:
    assert KNOWN.knows(item("how many?", "9")) and not KNOWN.knows(item("how many cats?", "9"))
    assert LookupAnswerer.of([]).answer(item("why?", "so")) == ""


@pytest.mark.shared_data
def test_it_finds_what_is_known_of_easy_vqa(shared_data: Path) -> None:
    """Its 107 questions alone are worth 67 %."""
    reader = QUESTIONS["easy_vqa"](path=str(shared_data / "easy_vqa" / "easy_vqa.zip"))
    known, asked = (
        [source.item(number) for number in range(len(source))]
        for source in (reader.build("train"), reader.build("test"))
    )
    answerer = LookupAnswerer.of(known)
    right = [judge(each, answerer.answer(each)).exact for each in asked]
    assert 0.66 < sum(right) / len(right) < 0.68
    assert len({each.question for each in known}) == 107
