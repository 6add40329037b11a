"""Language models measured on text: perplexity, and how far a student is from its teacher.

Every word that is asked for counts once, whichever block it stands in. Teacher and student read a batch one
after the other, and their logits exist for a few tokens at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch, asked
from ..core.output import Context
from ..core.task import Answer, Listing, Metric, Outcome, Pass, Runner, Sample
from ..errors import UserError
from .once import once
from .words import divergence, likelihoods, log_probabilities

TEACHER = "teacher"
# places in a document at which a new line of the table begins
EDGES = (64, 256, 1024, 4096, 16384, 65536)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass
class Tally:
    """Of the batches so far, one after the other: the numbers of their blocks, how many words of each are
    asked for by place (B, places), and each model's sums over those words, by what was summed."""

    index: list[Ints] = field(default_factory=list)
    words: list[Floats] = field(default_factory=list)
    sums: dict[str, dict[str, list[Floats]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Of all blocks: (N, places) words, and sums over them of `nats`, and where the teacher was measured in
    the same pass of `kl` and `same`, its most likely word too."""

    words: Floats
    sums: Mapping[str, Floats]

    def mean(self, name: str) -> float:
        return float(self.sums[name].sum() / self.words.sum())

    def items(self, name: str) -> Floats:
        """(N,) of the blocks, which weigh as many words as they have: their mean is that over words."""
        scores: Floats = self.sums[name].sum(axis=1) * (len(self.words) / self.words.sum())
        return scores

    def places(self, name: str) -> Floats:
        """(places,) means; nan where there is no word."""
        with np.errstate(invalid="ignore"):
            found: Floats = self.sums[name].sum(axis=0) / self.words.sum(axis=0)
        return found


@dataclass
class LanguageEvaluator:
    """Measures language models on one split.

    read: this process's batches: `text` (B, L) with `text_mask` or `text_segment`, `targets["tokens"]`
        (B, L), `index` (B,) the numbers of the blocks
    text: of a block by its number, to look at; None to show none
    longest: tokens of a row at most, where batches differ in length; None where all are of one. By it several
        processes agree how often a head is called

    Of a student whose teacher is measured in the same pass, also KL(teacher ‖ student) and how often both
    find the same word the likeliest.
    """

    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric(key="perplexity", label="perplexity", form="{:,.3f}", better="down", headline=True),
        Metric(key="nats_per_token", label="nats a token", form="{:.4f}", better="down"),
        Metric(key="kl", label="KL to the teacher, nats a token", form="{:.4f}", better="down"),
        Metric(key="top1_agreement", label="same next token as the teacher %"),
    )
    # student and teacher are to be measured in one pass
    together: ClassVar[bool] = True

    split: str
    read: Callable[[Pass], Iterator[Batch]]
    text: Callable[[int], str] | None = None
    metrics: tuple[Metric, ...] = METRICS
    longest: int | None = None
    # rows of a batch at most, on any process, and how many of these there are
    _rows: int = field(default=1, init=False, repr=False)
    _world: int = field(default=1, init=False, repr=False)

    def batches(self, passing: Pass) -> Iterator[Batch]:
        self._rows, self._world = passing.batch_size, passing.world
        return self.read(passing)

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Raises UserError for a model without logits, and for two of unlike vocabularies."""
        tokens, length = asked(batch), batch.targets["tokens"].shape[1]
        wanted = batch.targets["tokens"].flatten()[tokens]
        cells, shape = _cells(batch, tokens.cpu().numpy(), length)

        def summed(scores: Floats) -> Floats:
            sums = np.bincount(cells, weights=scores, minlength=shape[0] * shape[1])
            return sums.astype(np.float64).reshape(shape)

        tally.index.append(batch.index.cpu().numpy())
        tally.words.append(summed(np.ones(len(cells))))
        said = {name: runner.logits(batch) for name, runner in runners.items()}
        scores: dict[str, dict[str, list[Floats]]] = {name: {} for name in said}
        most = length if self.longest is None or self._world == 1 else self.longest
        for part, logs in log_probabilities(said, tokens, self._rows * most):
            for name, log in logs.items():
                found = {"nats": -likelihoods(log, wanted[part])[0]}
                if TEACHER in logs:
                    teacher = logs[TEACHER]
                    found["kl"] = divergence(log, teacher)
                    found["same"] = 100.0 * (log.argmax(dim=-1) == teacher.argmax(dim=-1).to(log.device))
                for kind, values in found.items():
                    scores[name].setdefault(kind, []).append(values.double().cpu().numpy())
        for name, kinds in scores.items():
            kept = tally.sums.setdefault(name, {})
            for kind in ("nats", "kl", "same") if TEACHER in said else ("nats",):
                kept.setdefault(kind, []).append(summed(np.concatenate([*kinds.get(kind, []), np.zeros(0)])))

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        """Raises UserError where no word is asked for."""
        kept = [tally for tally in tallies if any(map(len, tally.index))]
        index, chosen = once([part for tally in kept for part in tally.index] or [np.zeros(0, np.int64)])
        words = np.concatenate([part for tally in kept for part in tally.words] or [np.zeros((0, 1))])[chosen]
        if not words.sum():
            raise UserError(f"the {self.split} split has no words to predict; there is nothing to measure")
        outcomes = {}
        for name, kinds in kept[0].sums.items():
            sums = {
                kind: np.concatenate([part for tally in kept for part in tally.sums[name][kind]])[chosen]
                for kind in kinds
            }
            outcomes[name] = self._outcome(index, Found(words, sums))
        return outcomes

    def _outcome(self, index: Ints, found: Found) -> Outcome:
        keys = {"nats_per_token": "nats", "kl": "kl", "top1_agreement": "same"}
        there = {key: kind for key, kind in keys.items() if kind in found.sums}
        means = {key: found.mean(kind) for key, kind in there.items()}
        return Outcome(
            metrics={"perplexity": perplexity(means["nats_per_token"]), **means},
            items={key: found.items(kind) for key, kind in there.items()},
            index=index,
            exhibits=(self._by_place(found),),
            answers=found,
        )

    def _by_place(self, found: Found) -> Listing:
        """A line for each stretch of places in a document that has words."""
        starts = (0, *EDGES)
        names = [f"{start:,} to {end - 1:,}" for start, end in zip(starts, EDGES, strict=False)]
        names.append(f"from {EDGES[-1]:,}")
        columns = {"perplexity": [f"{perplexity(nats):,.3f}" for nats in found.places("nats")]}
        if "kl" in found.sums:
            columns["KL to the teacher, nats"] = [f"{kl:.4f}" for kl in found.places("kl")]
            columns["same next token %"] = [f"{share:.2f}" for share in found.places("same")]
        count = found.words.sum(axis=0)
        rows = [
            (names[k], f"{count[k]:,.0f}", *(cells[k] for cells in columns.values()))
            for k in np.flatnonzero(count)
        ]
        title = f"By the token's place in its document, {self.split} split"
        return Listing(title, ("place", "tokens", *columns), rows)

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Nothing: how far a student is from its teacher, only a pass over both can tell."""
        return {}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """The blocks on which the student is furthest from its teacher."""
        student = outcomes.get("student")
        if self.text is None or student is None or "kl" not in student.items:
            return []
        assert student.index is not None, "finish sets it"
        words = student.answers.words.sum(axis=1)
        far = np.divide(
            student.answers.sums["kl"].sum(axis=1), words, out=np.zeros(len(words)), where=words > 0
        )
        return [
            Sample(
                group="student is furthest from its teacher",
                answers=tuple(_answer(name, outcome.answers, place) for name, outcome in outcomes.items()),
                text=self.text(int(student.index[place])),
            )
            for place in np.argsort(-far, kind="stable")[:count]
        ]


def _cells(batch: Batch, tokens: Ints, length: int) -> tuple[Ints, tuple[int, int]]:
    """((N,) which cell of a table of blocks by places each of the tokens is in, the table's shape)."""
    positions = Context.of(batch.inputs).positions
    assert positions is not None, "a batch of text has them"
    places = np.searchsorted(EDGES, positions.flatten().cpu().numpy()[tokens], side="right")
    columns = len(EDGES) + 1
    return tokens // length * columns + places, (len(batch), columns)


def perplexity(nats: float) -> float:
    """Of so many nats a token; infinite where a float holds no more."""
    return math.exp(nats) if not nats > 700 else math.inf


def _answer(name: str, found: Found, place: int) -> Answer:
    words = found.words[place].sum()
    said = f"perplexity {perplexity(found.sums['nats'][place].sum() / words):,.2f}"
    kl = f", KL {found.sums['kl'][place].sum() / words:.3f}" if name != TEACHER and "kl" in found.sums else ""
    return Answer(name, said + kl)
