"""Linear probe: how well classes are told apart by a linear classifier of frozen image embeddings.

Logistic regression by L-BFGS with an L2 penalty, its strength chosen on a held-out fifth of the training
items and the classifier then fitted on all of them (Radford et al., ICML 2021, appendix A.3, which has a
finer search). It reads what a runner gives, which is the embedding after the projection and of length 1; the
paper reads the features before it, so that its numbers are not these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.batch import Batch
from ..core.task import Listing, Metric, Outcome, Pass, Runner, Sample
from ..errors import UserError
from .classification import ClassificationEvaluator, Ints, Scores, Tally
from .classification_named import NamedClassification, metrics_for
from .embedded import Embeddings, embedded
from .logistic import HELD_OUT, Trial, best_of, fit, try_out
from .once import once

_TRAINING = "training"
_ROWS = 4096


@dataclass
class Part:
    """Of the batches so far: numbers and labels of their items, and each model's embeddings."""

    index: list[Ints] = field(default_factory=list)
    labels: list[Ints] = field(default_factory=list)
    embeddings: dict[str, list[Embeddings]] = field(default_factory=dict)


@dataclass
class ProbeTally:
    train: Part = field(default_factory=Part)
    test: Part = field(default_factory=Part)


@dataclass(frozen=True)
class Items:
    """Each once, in the order of their numbers: index (N,), labels (N,), embeddings (N, E) by model."""

    index: Ints
    labels: Ints
    embeddings: Mapping[str, Embeddings]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Items | None:
        """Of all processes; None where there are none."""
        kept = [part for part in parts if any(map(len, part.index))]
        if not kept:
            return None
        index, chosen = once([array for part in kept for array in part.index])
        embeddings = {
            name: _joined([part.embeddings[name] for part in kept])[chosen] for name in kept[0].embeddings
        }
        return cls(index, _joined([part.labels for part in kept])[chosen], embeddings)


def _joined(lists: Sequence[Sequence[npt.NDArray]]) -> npt.NDArray:
    return np.concatenate([array for arrays in lists for array in arrays])


@dataclass(frozen=True)
class LinearProbeEvaluator:
    """Fits a classifier for each model on training items and measures it on one split.

    train:       this process's batches of the items to fit on, as evaluation sees them: no augmentation. All
        of their embeddings are held in memory, and each process fits on all of them, on its CPU: for
        ImageNet, give some hundred a class
    test:        this process's batches of the split
    class_names: (K,); one without a training item is never answered before the others
    pictures:    of the split's items by their number in its source, (N, H, W, 3) uint8

    Both kinds of batches are as `ClassificationEvaluator` has them: inputs of the image tower, targets
    `classes`.
    """

    METRICS: ClassVar[tuple[Metric, ...]] = metrics_for("probe", "linear probe")

    split: str
    train: Callable[[Pass], Iterator[Batch]]
    test: Callable[[Pass], Iterator[Batch]]
    class_names: Sequence[str]
    pictures: Callable[[Ints], npt.NDArray[np.uint8]]
    metrics: tuple[Metric, ...] = METRICS

    def batches(self, passing: Pass) -> Iterator[Batch]:
        """Those to fit on, then those of the split, told apart by a target of their own."""
        for training, batches in ((True, self.train), (False, self.test)):
            for batch in batches(passing):
                mark = torch.full((len(batch),), training)
                yield replace(batch, targets={**batch.targets, _TRAINING: mark})

    def start(self) -> ProbeTally:
        return ProbeTally()

    def add(self, tally: ProbeTally, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Raises UserError for a model without image embeddings."""
        part = tally.train if bool(batch.targets[_TRAINING].all()) else tally.test
        part.index.append(batch.index.cpu().numpy())
        part.labels.append(batch.targets["classes"].cpu().numpy())
        for name, runner in runners.items():
            found = embedded(name, runner, batch, ("image",))["image"]
            part.embeddings.setdefault(name, []).append(found)

    def finish(self, tallies: Sequence[ProbeTally]) -> dict[str, Outcome]:
        """Raises UserError where there is nothing to fit on or nothing to measure."""
        train = Items.of([tally.train for tally in tallies])
        test = Items.of([tally.test for tally in tallies])
        if train is None:
            raise UserError(f"the linear probe on {self.split} has no training items to fit on")
        measured, shown = Tally(), {}
        if test is not None:
            measured = Tally([test.index], [test.labels])
            for name, embeddings in test.embeddings.items():
                scores, shown[name] = self._probed(train, name, embeddings, test.labels)
                measured.scores[name] = scores
        return {
            name: replace(outcome, exhibits=(*outcome.exhibits, shown[name]))
            for name, outcome in self._named.finish([measured]).items()
        }

    def _probed(
        self, train: Items, name: str, embeddings: Embeddings, labels: Ints
    ) -> tuple[list[Scores], Listing]:
        """One model's scores on the split, and how its penalty was chosen."""
        features, classes = torch.from_numpy(train.embeddings[name]), torch.from_numpy(train.labels)
        trials = try_out(features, classes)
        probe = fit(features, classes, best_of(trials))
        parts: Iterator[tuple[Tensor, Tensor]] = zip(
            torch.from_numpy(embeddings).split(_ROWS), torch.from_numpy(labels).split(_ROWS), strict=True
        )
        scores = [Scores.of(probe.logits(some, len(self.class_names)), right) for some, right in parts]
        return scores, _listing(trials, best_of(trials), len(classes))

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Percent of items to which both give the same class."""
        return self._named.compare(a, b)

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Where student and teacher differ, both err, both are right; of many classes."""
        return self._named.samples(outcomes, count)

    @property
    def _named(self) -> NamedClassification:
        plain = ClassificationEvaluator(self.split, self.test, self.class_names, self.pictures)
        return NamedClassification("probe", "linear probe", plain)


def _listing(trials: Sequence[Trial], chosen: float, count: int) -> Listing:
    rows = [
        (
            f"{each.strength:g}",
            f"{each.top1:.2f}",
            f"{each.nll:.4f}",
            "yes" if each.strength == chosen else "",
        )
        for each in trials
    ]
    what = f"{HELD_OUT:.0%} of {count:,} training items" if trials else "nothing: no class has two items"
    title = f"Linear probe: strengths C tried on {what}; C is {chosen:g}"
    return Listing(title, ("C", "top-1 %", "NLL nats", "chosen"), rows)
