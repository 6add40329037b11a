"""Questions answered by likelihood, as EleutherAI's lm-evaluation-harness (0.4.13) scores them.

Of several choices the likeliest continuation is the answer (acc), or the likeliest a character (acc_norm);
one choice alone is right where every token of it is the model's first, as of LAMBADA's last words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..core.batch import IGNORED, Batch, asked
from ..core.task import Answer, Metric, Outcome, Pass, Runner, Sample
from ..data.text.benchmarks import Question
from ..errors import UserError
from .language import perplexity
from .once import once
from .words import likelihoods, log_probabilities

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# characters of a long text that are shown
_SHOWN = 600


class Encodes(Protocol):
    """Of `core.text.LanguageTokenizer`, what is needed here."""

    @property
    def context(self) -> int | None: ...

    @property
    def eos(self) -> int: ...

    @property
    def prefix(self) -> tuple[int, ...]: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class Request:
    """A context with one of its continuations: token numbers, of which those from `start` on are scored."""

    ids: list[int]
    start: int


@dataclass
class Tally:
    """Of the batches so far: numbers of requests, and by model their log-likelihoods, and whether every token
    was the likeliest."""

    index: list[Ints] = field(default_factory=list)
    scores: dict[str, list[Floats]] = field(default_factory=dict)
    greedy: dict[str, list[Floats]] = field(default_factory=dict)


@dataclass
class LikelihoodEvaluator:
    """Measures language models on one benchmark.

    split:     its name
    tokenizer: of all the models
    """

    split: str
    questions: Sequence[Question]
    tokenizer: Encodes
    # rows of a batch at most, on any process
    _rows: int = field(default=1, init=False, repr=False)

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
        """Of every choice of every question. Raises UserError for one without a token of its own."""
        pairs = [
            split_spaces(question.context, f" {choice}")
            for question in self.questions
            for choice in question.choices
        ]
        wholes = self.tokenizer.encode([context + continuation for context, continuation in pairs])
        contexts = self.tokenizer.encode([context for context, _ in pairs])
        return [
            self._request(context, whole, pair)
            for context, whole, pair in zip(contexts, wholes, pairs, strict=True)
        ]

    def _request(self, context: list[int], whole: list[int], pair: tuple[str, str]) -> Request:
        """Shortened at its beginning to what a model reads."""
        prefix = [*self.tokenizer.prefix] or ([] if context else [self.tokenizer.eos])
        ids, scored = [*prefix, *whole], len(whole) - len(context)
        if self.tokenizer.context is not None:
            ids = ids[-(self.tokenizer.context + 1) :]
        if not 0 < scored < len(ids):
            raise UserError(f"{self.split}: {pair[1]!r:.60} after {pair[0][-40:]!r} cannot be scored")
        return Request(ids, len(ids) - scored)

    def batches(self, passing: Pass) -> Iterator[Batch]:
        """The longest first. Those that the processes work on at the same time are of one length; one that
        has none of them reads another's again."""
        self._rows = passing.batch_size
        lengths = np.array([len(request.ids) for request in self.requests])
        order = np.argsort(-lengths, kind="stable")
        together = passing.batch_size * passing.world
        for start in range(0, len(order), together):
            group = order[start : start + together]
            mine = group[passing.rank :: passing.world]
            yield self._batch(mine if len(mine) else group[:1], int(lengths[group].max()))

    def _batch(self, numbers: Ints, length: int) -> Batch:
        """Requests (B,) with padding behind them, to `length` tokens."""
        text = torch.zeros(len(numbers), length - 1, dtype=torch.int64)
        mask, targets = torch.zeros_like(text, dtype=torch.bool), torch.full_like(text, IGNORED)
        for row, number in enumerate(numbers):
            request = self.requests[number]
            ids, last = torch.tensor(request.ids), len(request.ids) - 1
            text[row, :last], mask[row, :last] = ids[:-1], True
            targets[row, request.start - 1 : last] = ids[request.start :]
        answers = int((targets != IGNORED).sum())
        counts = {"samples": len(numbers), "tokens": int(mask.sum()), "answers": answers}
        index = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
        return Batch({"text": text, "text_mask": mask}, {"tokens": targets}, index, counts)

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        tokens, (rows, length) = asked(batch), batch.targets["tokens"].shape
        wanted, row = batch.targets["tokens"].flatten()[tokens], tokens.numpy() // length
        said = {name: runner.logits(batch) for name, runner in runners.items()}
        scores = {name: np.zeros(rows) for name in said}
        missed = {name: np.zeros(rows) for name in said}
        for part, logs in log_probabilities(said, tokens, self._rows * length):
            for name, log in logs.items():
                each, first = likelihoods(log, wanted[part])
                np.add.at(scores[name], row[part], each.double().cpu().numpy())
                np.add.at(missed[name], row[part], (~first).double().cpu().numpy())
        tally.index.append(batch.index.numpy())
        for name in said:
            tally.scores.setdefault(name, []).append(scores[name])
            tally.greedy.setdefault(name, []).append((missed[name] == 0).astype(np.float64))

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        kept = [tally for tally in tallies if tally.index]
        index, chosen = once([part for tally in kept for part in tally.index])
        assert len(index) == self._starts[-1], "every choice was read"
        outcomes = {}
        for name in kept[0].scores:
            scores, greedy = (
                np.concatenate([part for tally in kept for part in parts(tally)[name]])[chosen]
                for parts in (lambda tally: tally.scores, lambda tally: tally.greedy)
            )
            outcomes[name] = self._of_words(scores, greedy) if self._open else self._of_choices(scores)
        return outcomes

    def _of_words(self, scores: Floats, greedy: Floats) -> Outcome:
        right = 100 * np.where(np.isfinite(scores), greedy, np.nan)
        means = {"acc": float(right.mean()), "perplexity": perplexity(-float(scores.mean()))}
        return self._outcome(means, {"acc": right}, greedy.astype(np.int64) - 1)

    def _of_choices(self, scores: Floats) -> Outcome:
        choices = [choice for question in self.questions for choice in question.choices]
        normed = scores / np.array([max(1, len(choice)) for choice in choices])
        rights = np.array([question.answer for question in self.questions])
        picked = {"acc": self._best(scores), "acc_norm": self._best(normed)}
        known = np.logical_and.reduceat(np.isfinite(scores), self._starts[:-1])
        items = {key: np.where(known, 100.0 * (best == rights), np.nan) for key, best in picked.items()}
        means = {key: float(right.mean()) for key, right in items.items()}
        return self._outcome(means, items, picked["acc_norm"])

    def _best(self, scores: Floats) -> Ints:
        """(Q,) which choice of each question has the highest score, the first of several."""
        each = np.split(scores, self._starts[1:-1])
        return np.array([int(np.argmax(mine)) for mine in each])

    def _outcome(self, means: Mapping[str, float], items: Mapping[str, Floats], picked: Ints) -> Outcome:
        return Outcome(
            metrics={f"{self.split}_{key}": value for key, value in means.items()},
            items={f"{self.split}_{key}": scores for key, scores in items.items()},
            index=np.arange(len(self.questions), dtype=np.int64),
            answers=picked,
        )

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Nothing beside the paired differences."""
        return {}

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


def split_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a context belong to what follows: tokens begin with them."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
