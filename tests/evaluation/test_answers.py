"""How right answers are: against a slow evaluation written out step by step, and against cases by hand."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from transmamba.data.questions.source import Item
from transmamba.data.staged import Rationale
from transmamba.evaluation.answers import (
    CHOICE,
    OPEN,
    TRUTH,
    Verdict,
    by_type,
    chosen,
    exact_match,
    judge,
    kind_of,
    listing,
    soft_accuracy,
    truth_of,
)
from transmamba.evaluation.normalised import normalised

# --- the challenge's steps, letter by letter ---

MARKS = [
    ";",
    "/",
    "[",
    "]",
    '"',
    "{",
    "}",
    "(",
    ")",
    "=",
    "+",
    "\\",
    "_",
    "-",
    ">",
    "<",
    "@",
    "`",
    ",",
    "?",
    "!",
]
DIGITS = {
    "none": "0",
    **{
        word: str(number)
        for number, word in enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
        )
    },
}
SOME_CONTRACTIONS = {
    **{"dont": "don't", "isnt": "isn't", "couldve": "could've", "couldnt've": "couldn't've", "cant": "can't"},
    **{"couldn'tve": "couldn't've", "hed've": "he'd've", "he'dve": "he'd've", "oclock": "o'clock"},
    **{"yall'd've": "y'all'd've", "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've", "twas": "'twas"},
    **{"ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "youre": "you're", "whats": "what's", "lets": "lets"},
    **{"somebody'd": "somebodyd", "somebodyll": "somebody'll", "its": "its", "were": "were", "im": "im"},
    **{"well": "well", "hell": "hell", "shed": "shed", "wont": "won't", "maam": "ma'am", "arent": "aren't"},
}


def slowly_normalised(text: str) -> str:
    text = text.replace("\n", " ").replace("\t", " ").strip()
    comma_in_number = any(
        text[n - 1].isdigit() and text[n] == "," and text[n + 1].isdigit() for n in range(1, len(text) - 1)
    )
    out = text
    for mark in MARKS:
        beside_space = (mark + " ") in text or (" " + mark) in text
        out = out.replace(mark, "" if beside_space or comma_in_number else " ")
    letters = []
    for place, letter in enumerate(out):
        followed_by_digit = place + 1 < len(out) and out[place + 1].isdigit()
        if letter != "." or followed_by_digit:
            letters.append(letter)
    words = []
    for word in "".join(letters).lower().split():
        word = DIGITS.get(word, word)
        if word not in ("a", "an", "the"):
            words.append(SOME_CONTRACTIONS.get(word, word))
    return " ".join(words)


def slow_accuracy(said: str, answers: list[str]) -> float:
    """Each of ten people is left out in turn."""
    own, theirs, parts = slowly_normalised(said), list(map(slowly_normalised, answers)), []
    for left_out in range(len(theirs)):
        others = [answer for place, answer in enumerate(theirs) if place != left_out]
        parts.append(min(1.0, len([answer for answer in others if answer == own]) / 3))
    return sum(parts) / len(parts)


CASES = [
    *(
        "yes",
        "Yes.",
        "the dog",
        "A Dog!",
        "an  apple",
        "two",
        "Two dogs",
        "none",
        "ten",
        "eleven",
        "0",
        "a",
        "the",
    ),
    *(
        "1,000",
        "1,000 people, or more",
        "red, white",
        "red,white",
        "red/white",
        "red / white",
        "t-shirt",
        "t - shirt",
    ),
    *(
        "2.5",
        "2.5.",
        "3.",
        "st. louis",
        "u.s.a.",
        ".5",
        "3:30",
        "it's",
        "dog's",
        "(left)",
        "left (of it)",
        "what?!",
    ),
    *(
        "dont",
        "don't",
        "Dont",
        "couldnt've",
        "'twas",
        "yall'd've",
        "ow's'at",
        "somebody'd",
        "its",
        "were",
        "im",
    ),
    *(
        "a\nb",
        "a\tb",
        "  ",
        "",
        "hot-dog stand",
        "hot dog-stand, two",
        "@home",
        "x_y",
        "50%",
        "$5",
        "é",
        "<b>",
    ),
]


@pytest.mark.parametrize("text", CASES)
def test_answers_are_normalised_as_by_the_slow_steps(text: str) -> None:
    assert normalised(text) == slowly_normalised(text)
    assert normalised(f"the {text} dont") == slowly_normalised(f"the {text} dont")


def test_random_answers_are_normalised_as_by_the_slow_steps() -> None:
    draws = random.Random(0)
    pieces = [
        *MARKS,
        ".",
        ",",
        "'",
        ":",
        " ",
        " ",
        "3",
        "12",
        "a",
        "the",
        "two",
        "dog",
        "Red",
        *SOME_CONTRACTIONS,
    ]
    for _ in range(3000):
        text = "".join(draws.choice(pieces) + draws.choice(["", " "]) for _ in range(draws.randrange(1, 8)))
        assert normalised(text) == slowly_normalised(text), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The two dogs.", "2 dogs"),
        ("None", "0"),
        ("1,000", "1000"),
        ("red/white", "red white"),
        ("red, white", "red white"),
        ("dont know", "don't know"),
        ("at 3:30", "at 3:30"),
        ("2.5", "2.5"),
        ("a man", "man"),
        ("the", ""),
        ("someonell", "someone'll"),
        ("Twenty One", "twenty 1"),
    ],
)
def test_answers_by_hand(text: str, expected: str) -> None:
    assert normalised(text) == expected
    assert normalised(expected) == expected


# --- soft accuracy ---


@pytest.mark.parametrize(
    ("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_soft_accuracy_by_the_number_who_agree(agree: int, expected: float) -> None:
    """1 of 10: 9 of the ten subsets of nine hold it, each 1/3; 3 of 10: 7 hold three and 3 hold two."""
    answers = ["Two"] * agree + ["many"] * (10 - agree)
    assert soft_accuracy("2", answers) == pytest.approx(expected)
    assert slow_accuracy("2", answers) == pytest.approx(expected)


def test_soft_accuracy_is_that_of_the_slow_steps() -> None:
    draws = random.Random(1)
    for _ in range(500):
        pool = draws.sample(CASES, 3)
        answers = draws.choices(pool, k=10)
        said = draws.choice([*pool, "elsewhere"])
        assert soft_accuracy(said, answers) == pytest.approx(slow_accuracy(said, answers))


def test_other_numbers_of_answers_are_all_right() -> None:
    assert (
        soft_accuracy("the car", ["car", "automobile"])
        == 1.0
        == soft_accuracy("automobile", ["car", "Automobile"])
    )
    assert soft_accuracy("bus", ["car"]) == 0.0
    assert exact_match("A car", ["car", "automobile"]) and not exact_match("cars", ["car"])


def test_exact_match_of_ten_people_is_with_most() -> None:
    answers = ["red", "Red.", "the red", *["blue"] * 3, *["green"] * 2, "red and blue", "grey"]
    assert exact_match("red", answers) and not exact_match("blue", answers)  # of ties the first
    assert soft_accuracy("blue", answers) == pytest.approx(0.9)


# --- choices ---

COLOURS = ("red", "light blue", "blue", "a dog")


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("red", 0),
        ("Red.", 0),
        ("light blue", 1),
        ("blue", 2),
        ("it is light blue", 1),  # blue stands in it, too
        ("the dog", 3),
        ("B", 1),
        ("(C)", 2),
        ("D. a dog", 3),
        ("A) blue", 0),
        ("C: blue", 2),
        ("The answer is B", 1),
        ("The answer is (D).", 3),
        ("the answer is red", 0),
        ("So the answer: light blue", 1),
        ("option C", 2),
        ("A dog", 3),  # no letter: the article
        ("I think it is red.", 0),
        ("red or blue", None),
        ("green", None),
        ("E", None),
        ("", None),
        ("b", None),
        ("F. Nietzsche", None),
    ],
)
def test_which_choice_is_meant(said: str, place: int | None) -> None:
    assert chosen(said, COLOURS) == place


def test_a_choice_s_own_words_come_before_a_letter() -> None:
    assert chosen("A. Lincoln", ("J. Adams", "A. Lincoln")) == 1
    assert chosen("A", ("B", "A")) == 1 and chosen("U.S.", ("UK", "U.S.")) == 1
    assert chosen("", ("a", "b")) is None and chosen("the", ("a", "b")) is None


def test_numbers_are_chosen_by_their_value() -> None:
    assert (
        chosen("three", ("2", "3")) == 1
        and chosen("3", ("two", "three")) == 1
        and chosen("13", ("1", "3")) is None
    )


# --- true or false ---


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        ("yes", True),
        ("True.", True),
        ("No, there is none", False),
        ("FALSE", False),
        ("It is true", True),
        ("that is not false", None),  # by its only word
        ("true or false", True),  # by its first word
        ("either true or false", None),
        ("perhaps", None),
        ("", None),
    ],
)
def test_what_is_meant_as_true(said: str, truth: bool | None) -> None:
    assert truth_of(said) is truth


# --- judged whole ---


def item(answers: Any, **fields: Any) -> Item:
    return Item(question="?", answers=(answers,) if isinstance(answers, str) else tuple(answers), **fields)


@pytest.mark.parametrize(
    ("asked", "said", "verdict"),
    [
        (item("Two"), "2", Verdict(OPEN, 1.0, True, True)),
        (item("Two"), "3", Verdict(OPEN, 0.0, False, True)),
        (item("Two"), " .", Verdict(OPEN, 0.0, False, False)),
        (item("yes"), "Yes, it is", Verdict(TRUTH, 1.0, True, True)),
        (item("false"), "no", Verdict(TRUTH, 1.0, True, True)),
        (item("false"), "true", Verdict(TRUTH, 0.0, False, True)),
        (item("false"), "a dog", Verdict(TRUTH, 0.0, False, False)),
        (item("b", choices=("a", "b")), "B", Verdict(CHOICE, 1.0, True, True)),
        (item("dog", choices=("cat", "dog")), "a cat", Verdict(CHOICE, 0.0, False, True)),
        (item("dog", choices=("cat", "dog")), "a cow", Verdict(CHOICE, 0.0, False, False)),
        (item(["yes"] * 7 + ["no"] * 2 + ["maybe"]), "no", Verdict(TRUTH, 0.6, False, True)),
        (item(["yes"] * 7 + ["no"] * 3), "Yes.", Verdict(TRUTH, 1.0, True, True)),
        (item(["red"] * 2 + ["blue"] * 8), "red", Verdict(OPEN, 0.6, False, True)),
    ],
)
def test_an_answer_is_judged(asked: Item, said: str, verdict: Verdict) -> None:
    found = judge(asked, said)
    assert (found.kind, found.exact, found.known) == (verdict.kind, verdict.exact, verdict.known)
    assert found.soft == pytest.approx(verdict.soft)
    # what stands before the conclusion does not count
    reasons = Rationale(summary="no", caption="cat dog", reasoning="yes or A")
    if said.strip(" ."):
        assert judge(asked, reasons.written(said)) == found
    cut = reasons.written("x").partition("<CONCLUSION>")[0]
    assert not judge(asked, cut).known and not judge(asked, cut).exact


def test_true_and_yes_are_one_answer_of_ten_people_too() -> None:
    asked = item(["yes"] * 5 + ["no"] * 5)
    assert judge(asked, "true").soft == judge(asked, "yes").soft == 1.0


def test_scores_are_by_kind_and_by_type() -> None:
    asked = [
        item("2", type="count"),
        item("3", type="count"),
        item("red", type="colour", choices=("red", "blue")),
        item("yes"),
    ]
    said = ["two", "", "neither", "yes"]
    scores = by_type(asked, [judge(each, text) for each, text in zip(asked, said, strict=True)])
    shown = {name: (score.asked, score.soft, score.exact, score.unknown) for name, score in scores.items()}
    assert shown == {
        "all": (4, 50.0, 50.0, 2),
        "multiple choice": (1, 0.0, 0.0, 1),
        "open": (2, 50.0, 50.0, 1),
        "true or false": (1, 100.0, 100.0, 0),
        "type count": (2, 50.0, 50.0, 1),
        "type colour": (1, 0.0, 0.0, 1),
    }
    table = listing("scores", scores)
    assert table.columns[0] == "questions" and list(table.rows[0]) == ["all", "4", "50.0", "50.0", "2"]
    assert [len(row) for row in table.rows] == [5] * 6


def test_one_kind_alone_is_not_repeated() -> None:
    asked = [item("2"), item("3")]
    assert list(by_type(asked, [judge(each, "2") for each in asked])) == ["all"]


def test_the_kind_follows_from_choices_and_from_what_most_answer() -> None:
    assert kind_of(item("yes", choices=("yes", "no"))) == CHOICE
    assert kind_of(item(["yes"] * 3 + ["red"] * 7)) == OPEN and kind_of(item("True.")) == TRUTH
    for kinds in itertools.permutations(["yes"] * 2 + ["no"]):
        assert kind_of(item(kinds)) == TRUTH


def test_what_the_normalisation_leaves_nothing_of() -> None:
    """The answer "A", whose article is dropped: itself alone is right, and silence never is."""
    item = Item(question="Which letter?", answers=("A",))
    assert judge(item, "a").exact and judge(item, "A").known
    for said in ("", "?", "the"):
        assert not judge(item, said).exact and judge(item, said).soft == 0
    silent = Item(question="What?", answers=("",) * 10)
    assert judge(silent, "").soft == 0


@pytest.mark.parametrize("said", ["That is not true.", "It isn't true", "The statement is not false"])
def test_a_negated_truth_is_unknown(said: str) -> None:
    assert truth_of(said) is None


def test_ten_people_agree_with_unknown_too() -> None:
    item = Item(question="Is it?", answers=("yes",) * 6 + ("unknown",) * 4)
    assert judge(item, "unknown").soft == 1.0 and not judge(item, "unknown").exact
