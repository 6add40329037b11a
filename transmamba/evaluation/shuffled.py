"""Retrieval of videos whose frames are in another order: what a model loses knows the order of frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..core.batch import Batch
from ..core.task import Metric, Outcome, Pass, Runner, Sample
from .retrieval import RetrievalEvaluator, Tally

_KEYS = ("mean_recall", "i2t_r1", "t2i_r1", "twin_i2t", "twin_t2i")


@dataclass(frozen=True)
class ShuffledEvaluator:
    """The measurements of `ordered`, on the batches of videos with shuffled frames that it has; a mean over
    frames gives what it gives in order."""

    ordered: RetrievalEvaluator

    @property
    def split(self) -> str:
        return self.ordered.split

    @property
    def metrics(self) -> tuple[Metric, ...]:
        own = {metric.key: metric for metric in self.ordered.metrics if metric.key in _KEYS}
        return tuple(
            replace(metric, key=f"shuffled_{key}", label=f"{metric.label}, frames shuffled", headline=False)
            for key, metric in own.items()
        )

    def batches(self, passing: Pass) -> Iterator[Batch]:
        return self.ordered.batches(passing)

    def start(self) -> Tally:
        return self.ordered.start()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        self.ordered.add(tally, runners, batch)

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        return {name: _renamed(outcome) for name, outcome in self.ordered.finish(tallies).items()}

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        return {}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        return []


def _renamed(outcome: Outcome) -> Outcome:
    metrics = {f"shuffled_{key}": value for key, value in outcome.metrics.items() if key in _KEYS}
    items = {f"shuffled_{key}": values for key, values in outcome.items.items() if key in _KEYS}
    return replace(outcome, metrics=metrics, items=items, exhibits=(), answers=None)
