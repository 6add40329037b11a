"""A classifier's measurements under a name of their own, for a task that classifies in several ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.task import Listing, Matrix, Metric, Outcome, Sample
from .classification import ClassificationEvaluator, Floats, Ints, Tally


def metrics_for(key: str, title: str) -> tuple[Metric, ...]:
    return (
        Metric(key=f"{key}_top1", label=f"{title} top-1 %", headline=True),
        Metric(key=f"{key}_top5", label=f"{title} top-5 %"),
        Metric(key=f"{key}_per_class", label=f"{title} mean per class %"),
        Metric(key=f"{key}_agreement", label=f"{title} agreement %"),
    )


@dataclass(frozen=True)
class NamedClassification:
    """What `of` finds, with its keys after `key` and its headings after `title`.

    Calibration and likelihood are left out: what cosines are multiplied by is no part of an embedding.
    """

    key: str
    title: str
    of: ClassificationEvaluator

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        """Raises UserError where there is no item at all."""
        return {name: self._named(outcome) for name, outcome in self.of.finish(tallies).items()}

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        return {f"{self.key}_{key}": value for key, value in self.of.compare(a.answers, b.answers).items()}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        plain = {name: outcome.answers for name, outcome in outcomes.items()}
        return [replace(each, group=f"{self.title}: {each.group}") for each in self.of.samples(plain, count)]

    def _named(self, plain: Outcome) -> Outcome:
        items = {
            "top1": plain.items["top1"],
            "top5": plain.items["top5"],
            "per_class": _per_class(plain.items["top1"], plain.answers.labels),
        }
        named = {f"{self.key}_{key}": scores for key, scores in items.items()}
        return Outcome(
            metrics={key: float(scores.mean()) for key, scores in named.items()},
            items=named,
            index=plain.index,
            exhibits=tuple(self._titled(exhibit) for exhibit in plain.exhibits),
            answers=plain,
        )

    def _titled(self, exhibit: Matrix | Listing) -> Matrix | Listing:
        title = f"{self.title}: {exhibit.title[:1].lower()}{exhibit.title[1:]}"
        return replace(exhibit, title=title[:1].upper() + title[1:])


def _per_class(scores: Floats, labels: Ints) -> Floats:
    """(N,) whose mean is the mean over classes, of those that there are, of their items' mean score."""
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return scores * len(labels) / (len(counts) * counts[place])
