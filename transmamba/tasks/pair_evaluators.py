"""What pictures or videos with captions are measured by; without captions, by how alike two models are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.batch import Batch
from ..core.task import Evaluator, Metric
from ..data.pairs.source import PairSource, video_source
from ..evaluation.agreement import AgreementEvaluator
from ..evaluation.retrieval import RetrievalEvaluator
from ..evaluation.shuffled import ShuffledEvaluator
from ..evaluation.twins import Twin


@dataclass(frozen=True, kw_only=True)
class PairEvaluators:
    """Of one split.

    indices:   (N,) which items of the source are the split's
    captioned: whether any of them has a caption
    shuffled:  whether videos are measured with their frames in another order too
    batches:   of a `Pass`; with `shuffled=True` of videos whose frames are in another order
    pictures:  of items by their number, to look at
    """

    split: str
    source: PairSource
    indices: npt.NDArray[np.int64]
    captioned: bool
    shuffled: bool
    batches: Callable[..., Iterator[Batch]]
    pictures: Callable[[Any], npt.NDArray[np.uint8]]

    def all(self) -> tuple[Evaluator, ...]:
        """Of pairs retrieval, of pictures alone how alike two models are."""
        if not self.captioned:
            return (AgreementEvaluator(self.split, self.batches, self.pictures),)
        visual = "image" if video_source(self.source) is None else "video"
        captions, twin = self.source.captions, self._twin()
        retrieval = RetrievalEvaluator(self.split, self.batches, captions, self.pictures, visual, twin)
        if not self.shuffled:
            return (retrieval,)
        batches = partial(self.batches, shuffled=True)
        return (retrieval, ShuffledEvaluator(replace(retrieval, batches=batches)))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for evaluator in self.all() for metric in evaluator.metrics)

    def _twin(self) -> Twin | None:
        """Whose twin is which, where each item's is there."""
        twin: Twin | None = getattr(self.source, "twin", None)
        there = set(self.indices.tolist())
        return twin if twin is not None and all(twin(index) in there for index in there) else None
