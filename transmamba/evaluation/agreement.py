"""How alike two models embed the same pictures: what is left to measure where no caption and no class is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch
from ..core.task import Answer, Metric, Outcome, Pass, Runner, Sample
from ..errors import UserError
from .embedded import Embeddings, embedded
from .once import once
from .ranks import Ints


@dataclass
class Tally:
    """Of the batches so far: the numbers of their pictures, and the embeddings by model."""

    index: list[Ints] = field(default_factory=list)
    embeddings: dict[str, list[Embeddings]] = field(default_factory=dict)


@dataclass(frozen=True)
class AgreementEvaluator:
    """Compares image towers on one split of pictures alone; one model by itself has no metric here.

    batches:  this process's, inputs of the image tower
    pictures: of items by their number in the split's source, (N, H, W, 3) uint8
    """

    METRICS: ClassVar[tuple[Metric, ...]] = (
        Metric(key="image_cosine", label="image embedding cosine", form="{:.4f}", headline=True),
    )
    # it says nothing of one model
    pairwise: ClassVar[bool] = True

    split: str
    batches: Callable[[Pass], Iterator[Batch]]
    pictures: Callable[[Ints], npt.NDArray[np.uint8]]
    metrics: tuple[Metric, ...] = METRICS

    def start(self) -> Tally:
        return Tally()

    def add(self, tally: Tally, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Raises UserError for a model without image embeddings."""
        tally.index.append(batch.index.cpu().numpy())
        for name, runner in runners.items():
            found = embedded(name, runner, batch, ("image",))["image"]
            tally.embeddings.setdefault(name, []).append(found)

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        """Raises UserError where there is no picture at all."""
        kept = [tally for tally in tallies if any(map(len, tally.index))]
        if not kept:
            raise UserError(f"the {self.split} split is empty; there is nothing to measure")
        index, chosen = once([part for tally in kept for part in tally.index])
        return {
            name: Outcome(
                metrics={},
                index=index,
                answers=np.concatenate([part for tally in kept for part in tally.embeddings[name]])[chosen],
            )
            for name in kept[0].embeddings
        }

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """The mean cosine between the embeddings of the same picture; nothing where they are not of one
        width."""
        if a.answers.shape != b.answers.shape:
            return {}
        return {"image_cosine": float(_cosines(a, b).mean())}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """The pictures that student and teacher embed least alike."""
        if not {"student", "teacher"} <= outcomes.keys():
            return []
        one, other = outcomes["student"], outcomes["teacher"]
        if one.answers.shape != other.answers.shape:
            return []
        cosines = _cosines(one, other)
        least = np.argsort(cosines, kind="stable")[:count]
        assert one.index is not None, "finish sets it"
        return [
            Sample(
                group="student and teacher are least alike",
                answers=(Answer("student", f"cosine {cosines[place]:.3f}"),),
                picture=picture,
            )
            for place, picture in zip(least, self.pictures(one.index[least]), strict=True)
        ]


def _cosines(a: Outcome, b: Outcome) -> npt.NDArray[np.float64]:
    """(N,) of the same pictures: the embeddings are of length 1."""
    assert a.index is not None and b.index is not None and np.array_equal(a.index, b.index)
    return np.einsum("ne,ne->n", a.answers, b.answers, dtype=np.float64)
