"""Multiple choice by letters: how often the right one is the likeliest, and whether an answer stays the same
when the options change places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..core.task import Answer, Listing, Metric, Outcome, Sample
from ..data.text.letters import LETTERS, Lettered
from .requests import Encodes, Floats, Ints, Request, RequestEvaluator, encoded


@dataclass(frozen=True)
class Chosen:
    """What a model answers, of each question in each order (A,): the letter, and the option behind it."""

    letters: Ints
    options: Ints


class LettersEvaluator(RequestEvaluator):
    """Measures language models on one benchmark.

    split:     its name
    lettered:  questions in their orders, one question after the other
    tokenizer: of all the models
    """

    def __init__(self, split: str, lettered: Sequence[Lettered], tokenizer: Encodes) -> None:
        super().__init__(split)
        self.lettered, self.tokenizer = lettered, tokenizer
        numbers = np.array([each.number for each in lettered])
        self._first = np.flatnonzero(np.diff(numbers, prepend=-1))
        self._orders = np.diff(self._first, append=len(lettered))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        accuracy = Metric(key=f"{self.split}_acc", label=f"{self.split} acc %")
        same = Metric(key=f"{self.split}_same", label=f"{self.split}, same answer in all orders %")
        return (accuracy, same) if self._permuted else (accuracy,)

    @property
    def _permuted(self) -> bool:
        return bool((self._orders > 1).any())

    @cached_property
    def requests(self) -> list[Request]:
        """Of every letter of every question in every order."""
        pairs = [(each.context, f" {LETTERS[k]}") for each in self.lettered for k in range(len(each.order))]
        return encoded(pairs, self.tokenizer, self.split)

    def _outcome(self, scores: Floats, missed: Floats) -> Outcome:
        each = np.split(scores, np.cumsum([len(lettered.order) for lettered in self.lettered])[:-1])
        letters = np.array([int(np.argmax(mine)) for mine in each])
        known = np.array([np.isfinite(mine).all() for mine in each])
        options = np.array([lettered.order[k] for lettered, k in zip(self.lettered, letters, strict=True)])
        right = options == np.array([lettered.answer for lettered in self.lettered])
        items = {"acc": np.add.reduceat(np.where(known, 100.0 * right, np.nan), self._first) / self._orders}
        if self._permuted:
            like_first = options == np.repeat(options[self._first], self._orders)
            all_known = np.logical_and.reduceat(known, self._first)
            same = np.logical_and.reduceat(like_first, self._first)
            items["same"] = np.where(all_known, 100.0 * same, np.nan)
        found = self._found(items, Chosen(letters, options))
        return replace(found, exhibits=(self._letters(letters),))

    def _letters(self, chosen: Ints) -> Listing:
        """How often each letter is the answer, and would be right."""
        rights = [each.order.index(each.answer) for each in self.lettered]
        count = max(len(each.order) for each in self.lettered)
        said, right = (
            100 * np.bincount(letters, minlength=count) / len(rights) for letters in (chosen, rights)
        )
        rows = [(LETTERS[k], f"{said[k]:.1f}", f"{right[k]:.1f}") for k in range(count)]
        return Listing(f"Letters of {self.split}", ("letter", "answered %", "right %"), rows)

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Questions, in the first of their orders, that student and teacher answer otherwise."""
        if not {"student", "teacher"} <= outcomes.keys():
            return []
        student, teacher = (outcomes[name].answers.options[self._first] for name in ("student", "teacher"))
        differ = self._first[student != teacher]
        return [self._sample(int(number), outcomes) for number in differ[:count]]

    def _sample(self, number: int, outcomes: Mapping[str, Outcome]) -> Sample:
        lettered = self.lettered[number]
        right = lettered.order.index(lettered.answer)
        picked = {name: int(outcome.answers.letters[number]) for name, outcome in outcomes.items()}
        return Sample(
            group=f"{self.split}: student and teacher differ",
            answers=tuple(Answer(name, LETTERS[k], k == right) for name, k in picked.items()),
            label=LETTERS[right],
            text=lettered.context,
        )
