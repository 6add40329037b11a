"""Questions answered by likelihood, as EleutherAI's lm-evaluation-harness (0.4.13) scores them.

Of several choices the likeliest continuation is the answer (acc), or the likeliest a character (acc_norm);
one choice alone is right where every token of it is the model's first, as of LAMBADA's last words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from ..core.task import Answer, Metric, Outcome, Sample
from ..data.text.benchmarks import Question
from .language import perplexity
from .requests import Encodes, Floats, Ints, Request, RequestEvaluator, encoded

# characters of a long text that are shown
_SHOWN = 600


class LikelihoodEvaluator(RequestEvaluator):
    """Measures language models on one benchmark.

    split:     its name
    tokenizer: of all the models
    """

    def __init__(self, split: str, questions: Sequence[Question], tokenizer: Encodes) -> None:
        super().__init__(split)
        self.questions, self.tokenizer = questions, tokenizer

    @property
    def metrics(self) -> tuple[Metric, ...]:
        name, accuracy = self.split, Metric(key=f"{self.split}_acc", label=f"{self.split} acc %")
        if self._open:
            other = Metric(
                key=f"{name}_perplexity", label=f"{name} perplexity", form="{:,.2f}", better="down"
            )
        else:
            other = Metric(key=f"{name}_acc_norm", label=f"{name} acc_norm %")
        return accuracy, other

    @property
    def _open(self) -> bool:
        """Whether there is nothing to choose from."""
        return all(len(question.choices) == 1 for question in self.questions)

    @cached_property
    def _starts(self) -> Ints:
        """(Q + 1,) the numbers of the questions' first requests, and of all."""
        return np.cumsum([0, *(len(question.choices) for question in self.questions)])

    @cached_property
    def requests(self) -> list[Request]:
        """Of every choice of every question."""
        pairs = [
            (question.context, f" {choice}") for question in self.questions for choice in question.choices
        ]
        return encoded(pairs, self.tokenizer, self.split)

    def _outcome(self, scores: Floats, missed: Floats) -> Outcome:
        return self._of_words(scores, missed) if self._open else self._of_choices(scores)

    def _of_words(self, scores: Floats, missed: Floats) -> Outcome:
        right = 100.0 * np.where(np.isfinite(scores), missed == 0, np.nan)
        more = {f"{self.split}_perplexity": perplexity(-float(scores.mean()))}
        return self._found({"acc": right}, (missed == 0).astype(np.int64) - 1, more)

    def _of_choices(self, scores: Floats) -> Outcome:
        choices = [choice for question in self.questions for choice in question.choices]
        normed = scores / np.array([max(1, len(choice)) for choice in choices])
        rights = np.array([question.answer for question in self.questions])
        picked = {"acc": self._best(scores), "acc_norm": self._best(normed)}
        known = np.logical_and.reduceat(np.isfinite(scores), self._starts[:-1])
        items = {key: np.where(known, 100.0 * (best == rights), np.nan) for key, best in picked.items()}
        return self._found(items, picked["acc_norm"])

    def _best(self, scores: Floats) -> Ints:
        """(Q,) which choice of each question has the highest score, the first of several."""
        each = np.split(scores, self._starts[1:-1])
        return np.array([int(np.argmax(mine)) for mine in each])

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Questions that student and teacher answer otherwise."""
        if not {"student", "teacher"} <= outcomes.keys():
            return []
        differ = np.flatnonzero(outcomes["student"].answers != outcomes["teacher"].answers)
        return [self._sample(int(number), outcomes) for number in differ[:count]]

    def _sample(self, number: int, outcomes: Mapping[str, Outcome]) -> Sample:
        question = self.questions[number]
        picked = {name: int(outcome.answers[number]) for name, outcome in outcomes.items()}
        return Sample(
            group=f"{self.split}: student and teacher differ",
            answers=tuple(
                Answer(name, question.choices[k] if k >= 0 else "another word", k == question.answer)
                for name, k in picked.items()
            ),
            label=question.choices[question.answer],
            text=question.context[-_SHOWN:],
        )
