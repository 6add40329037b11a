"""Classifiers measured: accuracy, calibration, likelihood, what they confuse and where two of them differ.

A tally keeps a few numbers an item, not the logits of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.batch import Batch
from ..core.task import Metric, Outcome, Pass, Runner, Sample
from ..errors import UserError
from .classification_exhibits import Answers, choose, exhibits, groups, sample
from .once import once

ECE_BINS = 15
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Of (N,) items: the class answered, its probability, whether it and whether one of the first five is
    right (1, 0; nan where a logit is not finite), the negative log-likelihood of the label in nats."""

    predicted: Ints
    confidence: Floats
    top1: Floats
    top5: Floats
    nll: Floats

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Scores:
        """logits (N, K) float32, labels (N,), both on the CPU."""
        predicted = logits.argmax(dim=-1)
        ranked = logits.topk(min(5, logits.shape[1]), dim=-1).indices
        # argmax, as everywhere else: topk may order equal logits differently
        top1, top5 = predicted == labels, (ranked == labels[:, None]).any(dim=1)
        finite = torch.isfinite(logits).all(dim=1)
        scores = [
            logits.double().softmax(dim=-1).amax(dim=-1),
            top1.double(),
            top5.double(),
            F.cross_entropy(logits.double(), labels, reduction="none"),
        ]
        return cls(predicted.numpy(), *(score.where(finite, torch.nan).numpy() for score in scores))

    @classmethod
    def joined(cls, parts: Sequence[Scores], chosen: Ints) -> Scores:
        """The parts one after the other, of which the items at `chosen`."""
        columns = ("predicted", "confidence", "top1", "top5", "nll")
        return cls(*(np.concatenate([getattr(part, name) for part in parts])[chosen] for name in columns))


@dataclass
class Tally:
    """Of the batches so far: numbers and labels of their items, and each model's scores."""

    index: list[Ints] = field(default_factory=list)
    labels: list[Ints] = field(default_factory=list)
    scores: dict[str, list[Scores]] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassificationEvaluator:
    """Measures classifiers on one split.

    batches:     this process's batches: of `world` processes number r has items r, r + world, ...
    class_names: (K,)
    pictures:    of items by their number in the split's source, (N, H, W, 3) uint8
    """

    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric(key="top1", label="top-1 %", headline=True),
        Metric(key="top5", label="top-5 %"),
        Metric(key="agreement", label="agreement %"),
        Metric(key="ece", label="ECE %", better="down"),
        Metric(key="nll", label="NLL nats", form="{:.4f}", better="down"),
    )

    split: str
    batches: Callable[[Pass], Iterator[Batch]]
    class_names: Sequence[str]
    pictures: Callable[[Ints], npt.NDArray[np.uint8]]
    metrics: tuple[Metric, ...] = METRICS

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        labels = batch.targets["classes"].cpu()
        tally.index.append(batch.index.cpu().numpy())
        tally.labels.append(labels.numpy())
        for name, runner in runners.items():
            logits = runner.logits(batch)().float().cpu()
            tally.scores.setdefault(name, []).append(Scores.of(logits, labels))

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        """Raises UserError where there is no item at all."""
        kept = [
            tally for tally in tallies if any(map(len, tally.index))
        ]  # a process may have no share of a small split
        if not kept:
            raise UserError(f"the {self.split} split is empty; there is nothing to measure")
        index, chosen = once([part for tally in kept for part in tally.index])
        labels = np.concatenate([part for tally in kept for part in tally.labels])[chosen]
        outcomes = {}
        for name in kept[0].scores:
            scores = Scores.joined([part for tally in kept for part in tally.scores[name]], chosen)
            outcomes[name] = self._outcome(index, labels, scores)
        return outcomes

    def _outcome(self, index: Ints, labels: Ints, scores: Scores) -> Outcome:
        answers = Answers(index, labels, scores.predicted)
        return Outcome(
            metrics={
                "top1": 100 * float(scores.top1.mean()),
                "top5": 100 * float(scores.top5.mean()),
                "ece": 100 * expected_calibration_error(scores.confidence, scores.top1),
                "nll": float(scores.nll.mean()),
            },
            items={"top1": 100 * scores.top1, "top5": 100 * scores.top5, "nll": scores.nll},
            index=index,
            exhibits=exhibits(answers, self.class_names, self.split),
            answers=answers,
        )

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Percent of items to which both give the same class."""
        known = np.isfinite(a.items["top1"] + b.items["top1"])
        same = np.where(known, a.answers.predicted == b.answers.predicted, np.nan)
        return {"agreement": 100 * float(same.mean())}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Where student and teacher differ, both err, both are right; of many classes."""
        answers = {name: outcome.answers for name, outcome in outcomes.items()}
        chosen = choose(groups(answers), next(iter(answers.values())).labels, count)
        places = [place for _, places in chosen for place in places]
        if not places:
            return []
        index = next(iter(answers.values())).index
        pictures = iter(self.pictures(index[np.array(places)]))
        return [
            sample(title, place, answers, self.class_names, next(pictures))
            for title, places in chosen
            for place in places
        ]


def expected_calibration_error(confidence: Floats, correct: Floats, bins: int = ECE_BINS) -> float:
    """Mean |confidence - accuracy| over equally wide bins of the top probability, weighted by their size,
    0..1 (Guo et al., ICML 2017, equation 3). confidence, correct: (N,); nan of what holds a nan."""
    if not np.isfinite(confidence).all():
        return float("nan")
    which = torch.tensor(np.clip(np.ceil(confidence * bins), 1, bins) - 1, dtype=torch.int64)
    # in torch, whose order of adding earlier results were found with
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, which, torch.tensor(confidence - correct))
    return (gaps.abs().sum() / len(confidence)).item()
