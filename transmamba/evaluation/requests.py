"""Continuations of contexts that language models are scored on, tokenised as EleutherAI's
lm-evaluation-harness (0.4.13) does: their rows and batches, and what models say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..core.batch import Batch
from ..core.task import Outcome, Pass, Runner
from ..errors import UserError
from .once import once
from .words import likelihoods, log_probabilities

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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


def encoded(pairs: Sequence[tuple[str, str]], tokenizer: Encodes, who: str) -> list[Request]:
    """Of (context, continuation) pairs, tokenised together, shortened at their beginning to what a model
    reads.

    who: whose they are. Raises UserError for a continuation without a token of its own, or too long a one
    """
    pairs = [split_spaces(*pair) for pair in pairs]
    wholes = tokenizer.encode([context + continuation for context, continuation in pairs])
    contexts = tokenizer.encode([context for context, _ in pairs])
    found = []
    for context, whole, (before, after) in zip(contexts, wholes, pairs, strict=True):
        prefix = [*tokenizer.prefix] or ([] if context else [tokenizer.eos])
        ids, scored = [*prefix, *whole], len(whole) - len(context)
        if tokenizer.context is not None:
            ids = ids[-(tokenizer.context + 1) :]
        if not 0 < scored < len(ids):
            raise UserError(f"{who}: {after!r:.60} after {before[-40:]!r} cannot be scored")
        found.append(Request(ids, len(ids) - scored))
    return found


def split_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces at the end of a context belong to what follows: tokens begin with them."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def longest_first(lengths: Ints, passing: Pass) -> Iterator[tuple[Ints, Ints]]:
    """(this process's numbers, those of all processes) of one batch after the other; one that has none left
    takes another's first."""
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    together = passing.batch_size * passing.world
    for start in range(0, len(order), together):
        group = order[start : start + together]
        mine = group[passing.rank :: passing.world]
        yield (mine if len(mine) else group[:1]), group


class Rows:
    """Requests as the rows of batches: those that differ in their last token alone, such as letters of
    options, are read once."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        alike: dict[tuple[int, ...], list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(tuple(request.ids[:-1]), []).append(number)
        self.rows = list(alike.values())

    @cached_property
    def most(self) -> int:
        """How many tokens are asked of a row at most."""
        return max(sum(len(self._asked(number)) for number in row) for row in self.rows)

    def _asked(self, number: int) -> list[int]:
        request = self.requests[number]
        return request.ids[request.start :]

    def batches(self, passing: Pass) -> Iterator[Batch]:
        """The longest first; `index` is the numbers of rows. Those that the processes work on at the same
        time are of one length; one that has none of them reads another's again."""
        lengths = np.array([len(self.requests[row[0]].ids) for row in self.rows])
        for mine, group in longest_first(lengths, passing):
            yield self._batch(mine, int(lengths[group].max()))

    def _batch(self, numbers: Ints, length: int) -> Batch:
        """Rows (B,) with padding behind them, to `length - 1` tokens: nothing reads the last. What is asked
        of them, `asked` says."""
        text = torch.zeros(len(numbers), length - 1, dtype=torch.int64)
        mask = torch.zeros_like(text, dtype=torch.bool)
        for place, number in enumerate(numbers):
            ids = torch.tensor(self.requests[self.rows[number][0]].ids[:-1])
            text[place, : len(ids)], mask[place, : len(ids)] = ids, True
        index = torch.from_numpy(np.asarray(numbers, dtype=np.int64))
        counts = {"samples": len(numbers), "tokens": int(mask.sum())}
        return Batch({"text": text, "text_mask": mask}, {}, index, counts)

    def asked(self, batch: Batch) -> tuple[Ints, Ints, Ints, Ints]:
        """((R,) the requests of a batch, and of each token that is asked (N,): which of the B * L tokens it
        follows, what it is, which of the R requests it belongs to)."""
        length = batch.inputs["text"].shape[1]
        numbers: list[int] = []
        places: list[int] = []
        wanted: list[int] = []
        owners: list[int] = []
        for line, row in enumerate(batch.index.tolist()):
            for number in self.rows[row]:
                request, asked = self.requests[number], self._asked(number)
                first = line * length + request.start - 1
                places += range(first, first + len(asked))
                owners += [len(numbers)] * len(asked)
                wanted += asked
                numbers.append(number)
        return np.array(numbers), np.array(places), np.array(wanted), np.array(owners)


@dataclass
class Tally:
    """Of the batches so far: numbers of requests, and by model their log-likelihoods, and how many of their
    tokens were not the likeliest."""

    index: list[Ints] = field(default_factory=list)
    scores: dict[str, list[Floats]] = field(default_factory=dict)
    missed: dict[str, list[Floats]] = field(default_factory=dict)


class RequestEvaluator:
    """What evaluators of requests have in common.

    split: the benchmark's name
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self._batch_size = 1  # of any process

    @cached_property
    def requests(self) -> list[Request]:
        """In the order of what is asked. Raises UserError for one that cannot be scored."""
        raise NotImplementedError

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self.requests)

    def batches(self, passing: Pass) -> Iterator[Batch]:
        self._batch_size = passing.batch_size
        return self._rows.batches(passing)

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Raises UserError for a model without logits."""
        numbers, places, wanted, owners = self._rows.asked(batch)
        tokens, right = torch.from_numpy(places), torch.from_numpy(wanted)
        said = {name: runner.logits(batch) for name, runner in runners.items()}
        scores = {name: np.zeros(len(numbers)) for name in said}
        missed = {name: np.zeros(len(numbers)) for name in said}
        for part, logs in log_probabilities(said, tokens, self._batch_size * self._rows.most):
            for name, log in logs.items():
                each, first = likelihoods(log, right[part])
                np.add.at(scores[name], owners[part], each.double().cpu().numpy())
                np.add.at(missed[name], owners[part], (~first).double().cpu().numpy())
        tally.index.append(numbers)
        for name in said:
            tally.scores.setdefault(name, []).append(scores[name])
            tally.missed.setdefault(name, []).append(missed[name])

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        kept = [tally for tally in tallies if tally.index]
        index, chosen = once([part for tally in kept for part in tally.index])
        assert len(index) == len(self.requests), "every request was read"
        outcomes = {}
        for name in kept[0].scores:
            scores, missed = (
                np.concatenate([part for tally in kept for part in parts(tally)[name]])[chosen]
                for parts in (lambda tally: tally.scores, lambda tally: tally.missed)
            )
            outcomes[name] = self._outcome(scores, missed)
        return outcomes

    def _outcome(self, scores: Floats, missed: Floats) -> Outcome:
        """Of one model, whose log-likelihoods (R,) and wrong tokens these are."""
        raise NotImplementedError

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Nothing beside the paired differences."""
        return {}

    def _found(
        self, items: Mapping[str, Floats], answers: Any, more: Mapping[str, float] | None = None
    ) -> Outcome:
        """items: scores of the questions, (Q,), by what their mean is called behind the benchmark's name;
        more: metrics that are no such means"""
        named = {f"{self.split}_{key}": scores for key, scores in items.items()}
        means = {key: float(scores.mean()) for key, scores in named.items()}
        count = len(next(iter(named.values())))
        index = np.arange(count, dtype=np.int64)
        return Outcome(metrics={**means, **(more or {})}, items=named, index=index, answers=answers)
