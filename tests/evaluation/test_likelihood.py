"""Choices by likelihood against a slow loop: one continuation at a time, no batches, padding or sorting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import transmamba.evaluation.words as words
from transmamba.core.batch import Batch
from transmamba.core.output import Logits
from transmamba.core.task import Evaluator, Pass
from transmamba.data.text.benchmarks import Question
from transmamba.errors import UserError
from transmamba.evaluation.likelihood import LikelihoodEvaluator
from transmamba.evaluation.requests import split_spaces
from transmamba.evaluation.run import measure

LETTERS = " abcdefgh.:"
VOCABULARY = [*LETTERS, *(f" {letter}" for letter in "abcdefgh"), "ab", "cde", "<bos>"]


class Pieces:
    """Longest first, as byte-pair encodings nearly do it; a space belongs to the letter behind it."""

    eos = VOCABULARY.index(".")

    def __init__(self, context: int | None = None, prefix: tuple[int, ...] = ()) -> None:
        self.context, self.prefix = context, prefix

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        ids = []
        while text:
            piece = next(p for p in sorted(VOCABULARY, key=len, reverse=True) if text.startswith(p))
            ids.append(VOCABULARY.index(piece))
            text = text[len(piece) :]
        return ids


class Remembers:
    """A causal model: each token's stream is a decaying sum of what stood before it."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        size = len(VOCABULARY)
        self.table, self.out = (torch.randn(size, 12, generator=draw).double() for _ in range(2))
        self.calls = 0

    def run(self, text: Tensor) -> Tensor:
        x = self.table[text]
        hidden = [x[:, 0]]
        for t in range(1, x.shape[1]):
            hidden.append(0.8 * hidden[-1] + x[:, t])
        return torch.stack(hidden, dim=1)

    def head(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return 0.6 * hidden @ self.out.T

    def logits(self, batch: Batch) -> Logits:
        return Logits(self.run(batch.inputs["text"]), self.head)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def generate(self, batch: Batch, limit: int) -> Tensor:
        raise NotImplementedError


def text_of(draw: np.random.Generator, length: int) -> str:
    return "".join(draw.choice(list(LETTERS[:9]), length)).strip() or "a"


def questions_of(choices: Sequence[int], seed: int = 0) -> list[Question]:
    """With so many choices each; contexts of all lengths, some of which end with spaces."""
    draw = np.random.default_rng(seed)
    found = []
    for number, count in enumerate(choices):
        context = text_of(draw, int(draw.integers(1, 40))) + ":" + " " * (number % 3 == 0)
        texts = tuple(text_of(draw, int(draw.integers(1, 9))) for _ in range(count))
        found.append(Question(context, texts, int(draw.integers(count))))
    return found


def slow(model: Remembers, tokenizer: Pieces, context: str, continuation: str) -> tuple[float, bool]:
    """As the harness has it: (log-likelihood, whether each token is the first)."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole = [*tokenizer.prefix, *tokenizer._encode(context + continuation)]
    after = whole[len(tokenizer.prefix) + len(tokenizer._encode(context)) :]
    inputs = (whole[-(tokenizer.context + 1) :] if tokenizer.context else whole)[:-1]
    logs = model.head(model.run(torch.tensor([inputs])))[0].log_softmax(-1)[-len(after) :]
    score = sum(float(log[token]) for log, token in zip(logs, after, strict=True))
    return score, all(int(log.argmax()) == token for log, token in zip(logs, after, strict=True))


def measured(evaluator: LikelihoodEvaluator, models: dict[str, Any], world: int = 1) -> Any:
    tallies = []
    for rank in range(world):
        tally = evaluator.start()
        for batch in evaluator.batches(Pass(batch_size=4, rank=rank, world=world)):
            evaluator.add(tally, models, batch)
        tallies.append(tally)
    return evaluator.finish(tallies)


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CHUNK", 20)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    "tokenizer",
    [Pieces(), Pieces(prefix=(VOCABULARY.index("<bos>"),)), Pieces(context=12)],
    ids=["plain", "bos", "short context"],
)
def test_choices_are_those_of_a_slow_loop(tokenizer: Pieces, world: int) -> None:
    questions = questions_of([2, 4, 4, 3, 2, 5, 4, 4, 2, 4, 3, 4, 4, 4, 2, 2, 4, 4])
    models = {"student": Remembers(1), "teacher": Remembers(2)}
    outcomes = measured(LikelihoodEvaluator("toy", questions, tokenizer), models, world)
    for name, model in models.items():
        right: dict[str, list[float]] = {"toy_acc": [], "toy_acc_norm": []}
        for question in questions:
            scores = [slow(model, tokenizer, question.context, f" {c}")[0] for c in question.choices]
            normed = [score / len(c) for score, c in zip(scores, question.choices, strict=True)]
            right["toy_acc"].append(100.0 * (int(np.argmax(scores)) == question.answer))
            right["toy_acc_norm"].append(100.0 * (int(np.argmax(normed)) == question.answer))
        for key, expected in right.items():
            assert outcomes[name].items[key].tolist() == expected
            assert outcomes[name].metrics[key] == pytest.approx(np.mean(expected))
        assert right["toy_acc"] != right["toy_acc_norm"] and 0 < sum(right["toy_acc"]) < 100 * len(questions)


@pytest.mark.parametrize("world", [1, 3])
def test_last_words_are_those_of_a_slow_loop(world: int) -> None:
    """Half of them what the model itself would write."""
    tokenizer, model = Pieces(), Remembers(1)
    questions = questions_of([1] * 20, seed=3)
    for place, question in enumerate(questions[:10]):
        context = question.context.rstrip()
        ids = torch.tensor([tokenizer._encode(context)])
        logits = model.head(model.run(ids))[0, -1]
        begins = [VOCABULARY[k].startswith(" ") and len(VOCABULARY[k]) > 1 for k in range(len(VOCABULARY))]
        if begins[int(logits.argmax())]:
            questions[place] = Question(context, (VOCABULARY[int(logits.argmax())][1:],))
    found = measured(LikelihoodEvaluator("last", questions, tokenizer), {"student": model}, world)["student"]
    expected = [slow(model, tokenizer, q.context, f" {q.choices[0]}") for q in questions]
    assert found.items["last_acc"].tolist() == [100.0 * greedy for _, greedy in expected]
    assert 0 < found.metrics["last_acc"] < 100
    perplexity = math.exp(-np.mean([score for score, _ in expected]))
    assert found.metrics["last_perplexity"] == pytest.approx(perplexity, rel=1e-9)


def test_processes_work_alike() -> None:
    """As many batches, of one length at a time, and as many calls of the head: with fewer requests too."""
    questions = questions_of([2, 3, 2, 2])
    seen = []
    for rank in range(3):
        evaluator, model = LikelihoodEvaluator("toy", questions, Pieces()), Remembers(1)
        passing = Pass(batch_size=2, rank=rank, world=3)
        shapes, tally = [], evaluator.start()
        for batch in evaluator.batches(passing):
            shapes.append(batch.inputs["text"].shape[1])
            evaluator.add(tally, {"student": model}, batch)
        seen.append((shapes, model.calls))
    assert seen[0] == seen[1] == seen[2] and len(seen[0][0]) == 2
    assert seen[0][0] == sorted(seen[0][0], reverse=True), "the longest first"


def test_student_and_teacher_are_compared_question_by_question() -> None:
    questions = questions_of([4] * 30)
    evaluator = LikelihoodEvaluator("toy", questions, Pieces())
    found = measure([evaluator], {"student": Remembers(1), "teacher": Remembers(2)}, Pass(batch_size=8))
    difference = found.differences()["toy_acc"]
    mean = found.metrics("student")["toy_acc"] - found.metrics("teacher")["toy_acc"]
    assert difference.items == 30 and difference.mean == pytest.approx(mean)
    samples = found.samples(3)
    assert samples and all(sample.answers[0].text != sample.answers[1].text for sample in samples)
    assert {metric.key for metric in evaluator.metrics} == {"toy_acc", "toy_acc_norm"}
    assert isinstance(evaluator, Evaluator)


def test_logits_that_are_not_finite_answer_nothing() -> None:
    broken = Remembers(1)
    broken.out[3] = torch.nan
    questions = questions_of([3, 2, 4])
    found = measured(LikelihoodEvaluator("toy", questions, Pieces()), {"student": broken})["student"]
    assert math.isnan(found.metrics["toy_acc"])


def test_spaces_belong_to_what_follows() -> None:
    assert split_spaces("Answer:  ", " yes") == ("Answer:", "   yes")
    assert split_spaces("Answer:", " yes") == ("Answer:", " yes")


@pytest.mark.parametrize(("context", "choice"), [("aaaa", "c" * 9), ("", "")])
def test_what_cannot_be_scored_is_said(context: str, choice: str) -> None:
    """A continuation longer than what a model reads, or none at all."""
    tokenizer = Pieces(context=5)
    if not choice:
        tokenizer.encode = lambda texts: [[] for _ in texts]  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"toy: ' c*' after 'a*' cannot be scored"):
        _ = LikelihoodEvaluator("toy", [Question(context, (choice, "b"))], tokenizer).requests


def test_an_empty_context_begins_with_the_token_that_ends_a_text() -> None:
    evaluator = LikelihoodEvaluator("toy", [Question("", ("ab", "c"))], Pieces())
    assert [request.ids[0] for request in evaluator.requests] == [Pieces.eos] * 2
    assert [request.start for request in evaluator.requests] == [1, 1]
