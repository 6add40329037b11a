"""Data sets with classes on which a dual encoder is measured beside its pairs: zero-shot and linear probe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from ..config.load import Part
from ..config.registry import READERS
from ..core.preprocessing import Preprocessing
from ..core.task import Evaluator, Metric
from ..core.text import Tokenizer
from ..data.images.labelled import Labelled
from ..errors import UserError


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Zero-shot classification, measured on the test split of `data`: a class is what it is called.

    data:      a reader of images with classes
    templates: a text file of sentences, one a line, with {c} where the class's name goes; left out: `a photo
               of a {c}.`
    name:      tells several data sets apart, in `zero_shot_NAME_top1`; of a single one it may be left out
    """

    data: Annotated[Any, Part(READERS)]
    templates: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]*", self.name):
            raise UserError(f"name {self.name!r}: write small letters, digits and _, such as cifar10")


class LabelledSets:
    """Those of one task, as one model sees them.

    zero_shot: no two of one name
    probe:     a configured reader, or None
    """

    def __init__(self, zero_shot: Sequence[ZeroShot], probe: Any, preprocessing: Preprocessing) -> None:
        self.zero_shot = [(each, Labelled(each.data, preprocessing)) for each in zero_shot]
        self.probe = None if probe is None else Labelled(probe, preprocessing)
        self.templates = [_templates(each) for each in zero_shot]
        for _, labelled in self.zero_shot:
            labelled.source("test")  # so that a missing data set is known before training, not after
        if self.probe is not None:
            self.probe.check_classes()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        from ..evaluation.linear_probe import LinearProbeEvaluator
        from ..evaluation.zero_shot import ZeroShotEvaluator

        found = [metric for each, _ in self.zero_shot for metric in ZeroShotEvaluator.metrics_of(each.name)]
        return (*found, *(LinearProbeEvaluator.METRICS if self.probe is not None else ()))

    def evaluators(self, tokenizer: Tokenizer | None) -> tuple[Evaluator, ...]:
        """tokenizer: None for a model that reads no texts, where there are no zero-shot sets"""
        classified = () if tokenizer is None else tuple(self._classified(tokenizer))
        assert tokenizer is not None or not self.zero_shot, "checked by the task"
        return (*classified, *self._probed())

    def _classified(self, tokenizer: Tokenizer) -> Iterator[Evaluator]:
        from ..evaluation.zero_shot import ZeroShotEvaluator, inputs_of

        for (each, labelled), templates in zip(self.zero_shot, self.templates, strict=True):
            yield ZeroShotEvaluator(
                "test",
                partial(labelled.batches, "test"),
                labelled.class_names(),
                templates,
                inputs_of(tokenizer),
                labelled.images,
                name=each.name,
            )

    def _probed(self) -> Iterator[Evaluator]:
        from ..evaluation.linear_probe import LinearProbeEvaluator

        if self.probe is not None:
            train, test = (partial(self.probe.batches, split) for split in ("train", "test"))
            yield LinearProbeEvaluator("test", train, test, self.probe.class_names(), self.probe.images)

    def look_through(self) -> Iterator[str]:
        """Decodes every image; a line for each that does not decode."""
        for each, labelled in self.zero_shot:
            yield from labelled.look_through("test", " ".join(["zero-shot", each.name]).strip())
        for split in ("train", "test") if self.probe is not None else ():
            assert self.probe is not None
            yield from self.probe.look_through(split, f"the probe's {split}")


def _templates(each: ZeroShot) -> tuple[str, ...]:
    from ..evaluation.zero_shot import TEMPLATES, read_templates

    return TEMPLATES if each.templates is None else read_templates(each.templates)
