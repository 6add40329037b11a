"""Letters in several orders against a slow loop over questions, orders and letters."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from test_likelihood import VOCABULARY, Pieces, Remembers, measured, slow

from transmamba.core.batch import Batch
from transmamba.core.output import Logits
from transmamba.core.task import Evaluator, Pass
from transmamba.data.text.letters import Lettered
from transmamba.evaluation.letters import LettersEvaluator
from transmamba.evaluation.run import measure

# the letters' stand-ins among the words of the small vocabulary
SMALL = "abcdefgh"


@pytest.fixture(autouse=True)
def small_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transmamba.evaluation.letters.LETTERS", SMALL)


def lettered(counts: list[int], orders: int, seed: int = 0) -> list[Lettered]:
    """Questions of so many options each, the context telling the order."""
    draw = np.random.default_rng(seed)
    found = []
    for number, count in enumerate(counts):
        answer = int(draw.integers(count))
        stem = "".join(draw.choice(list(SMALL), int(draw.integers(3, 12))))
        for order in itertools.islice(itertools.permutations(range(count)), orders):
            context = f"{stem}. " + ".".join(stem[k % len(stem)] + SMALL[k] for k in order) + ":"
            found.append(Lettered(number, context, order, answer))
    return found


class Counting(Remembers):
    """Counts rows and tokens that are read."""

    rows = 0

    def logits(self, batch: Batch) -> Logits:
        self.rows += len(batch)
        return super().logits(batch)


def picked(model: Remembers, each: Lettered) -> int:
    """The letter that the slow loop finds likeliest."""
    scores = [slow(model, Pieces(), each.context, f" {SMALL[k]}")[0] for k in range(len(each.order))]
    return int(np.argmax(scores))


@pytest.mark.parametrize("world", [1, 3])
def test_letters_are_those_of_a_slow_loop(world: int) -> None:
    asked = lettered([4, 2, 3, 2, 5, 2, 3, 2, 4, 2, 2, 3, 2, 4, 3, 2], orders=2)
    evaluator, model = LettersEvaluator("toy", asked, Pieces()), Counting(3)
    found = measured(evaluator, {"student": model}, world)["student"]  # type: ignore[arg-type]
    letters = [picked(model, each) for each in asked]
    right, same = [], []
    for _, mine in itertools.groupby(zip(asked, letters, strict=True), key=lambda pair: pair[0].number):
        options = [(each.order[letter], each.answer) for each, letter in mine]
        right.append(np.mean([100.0 * (option == answer) for option, answer in options]))
        same.append(100.0 * (len({option for option, _ in options}) == 1))
    assert found.items["toy_acc"] == pytest.approx(right) and found.items["toy_same"].tolist() == same
    assert found.metrics["toy_acc"] == pytest.approx(np.mean(right))
    assert found.metrics["toy_same"] == np.mean(same) and 0 < np.mean(same) < 100
    (table,) = found.exhibits
    counts = np.bincount(letters, minlength=5)
    assert [row[1] for row in table.rows] == [f"{100 * c / len(asked):.1f}" for c in counts]
    assert isinstance(evaluator, Evaluator)
    if world == 1:
        assert model.rows == len(asked), "letters of one question are read in one row"


def test_letters_of_several_tokens_count_too() -> None:
    """A tokenizer that cuts a letter off its space asks two tokens, of which the first is the same."""

    class Apart(Pieces):
        def _encode(self, text: str) -> list[int]:
            return [VOCABULARY.index(letter) for letter in text]

    asked, model, tokenizer = lettered([4, 3, 4, 4, 4, 2], orders=4, seed=2), Remembers(5), Apart()
    found = measured(LettersEvaluator("toy", asked, tokenizer), {"student": model})["student"]  # type: ignore[arg-type]
    for each, letter in zip(asked, found.answers.letters, strict=True):
        scores = [slow(model, tokenizer, each.context, f" {SMALL[k]}")[0] for k in range(len(each.order))]
        assert letter == int(np.argmax(scores))


def test_one_order_says_nothing_of_sameness() -> None:
    evaluator = LettersEvaluator("toy", lettered([4, 3, 4], orders=1), Pieces())
    found = measured(evaluator, {"student": Remembers(1)})["student"]  # type: ignore[arg-type]
    assert [metric.key for metric in evaluator.metrics] == ["toy_acc"] == [*found.metrics]


def test_one_that_is_stuck_on_a_letter_is_right_by_chance_and_never_the_same() -> None:
    """With turns as orders every option stands once at its letter."""
    turns = [
        Lettered(number, "ab" * (number + 1) + ":", order, number % 4)
        for number in range(6)
        for order in ((0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2))
    ]
    stuck: Any = Remembers(1)
    stuck.head = lambda hidden: (
        9.0
        * torch.nn.functional.one_hot(
            torch.full(hidden.shape[:-1], VOCABULARY.index(" c")), len(VOCABULARY)
        ).double()
    )
    found = measured(LettersEvaluator("toy", turns, Pieces()), {"student": stuck})["student"]  # type: ignore[arg-type]
    assert found.metrics == {"toy_acc": 25.0, "toy_same": 0.0}
    assert [row[1] for row in found.exhibits[0].rows] == ["0.0", "0.0", "100.0", "0.0"]


def test_models_are_compared_question_by_question_and_what_is_not_finite_is_nan() -> None:
    evaluator = LettersEvaluator("toy", lettered([4] * 12, orders=4), Pieces())
    runners = {"student": Remembers(1), "teacher": Remembers(2)}
    found = measure([evaluator], runners, Pass(batch_size=8))  # type: ignore[arg-type]
    apart = found.differences()
    assert apart.keys() == {"toy_acc", "toy_same"} and apart["toy_acc"].items == 12
    sample = found.samples(3)[0]
    assert sample.answers[0].text != sample.answers[1].text and sample.label in SMALL
    broken = Remembers(1)
    broken.out[3] = torch.nan
    nothing = measured(evaluator, {"student": broken})["student"].metrics  # type: ignore[arg-type]
    assert all(map(math.isnan, nothing.values()))
