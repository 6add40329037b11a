"""Zero-shot classification: a picture's class is the one whose description its embedding is most like.

A class's vector is the mean over templates of the normalised embeddings of its descriptions, normalised
(Radford et al., ICML 2021, section 3.1.4; as open_clip and CLIP_benchmark make it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.batch import Batch
from ..core.task import Metric, Outcome, Pass, Runner, Sample
from ..core.text import Tokenizer
from ..errors import UserError
from .classification import ClassificationEvaluator, Ints, Scores, Tally
from .classification_named import NamedClassification, metrics_for
from .embedded import embedded

TEMPLATES = ("a photo of a {c}.",)
Tokenize = Callable[[Sequence[str]], Mapping[str, Tensor]]

_PLACE = re.compile(r"\{c?\}")
# texts in one forward pass: memory, not the result
_TEXTS = 256


def read_templates(path: str | Path) -> tuple[str, ...]:
    """The lines of a text file in UTF-8, each with one `{c}` (CLIP_benchmark's) or `{}` where the class's
    name goes. Empty lines are left out. Raises UserError, naming the line, for one without."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"templates {path}: {error.strerror}; write a text file, a template a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"templates {path}: no UTF-8 text ({error.reason}); save it as UTF-8") from None
    found = []
    for number, line in enumerate(lines, 1):
        template = line.strip()
        if not template:
            continue
        if len(_PLACE.findall(template)) != 1:
            raise UserError(
                f"templates {path}, line {number}: {template!r} must have one {{c}}, where the class's name "
                f"goes, such as {TEMPLATES[0]!r}"
            )
        found.append(template)
    if not found:
        raise UserError(f"templates {path}: no template there; write one a line, such as {TEMPLATES[0]!r}")
    return tuple(found)


def described(name: str, templates: Sequence[str]) -> list[str]:
    """A class's name in each template."""
    return [_PLACE.sub(lambda _: name, template) for template in templates]


def inputs_of(tokenizer: Tokenizer) -> Tokenize:
    """What makes a text tower's inputs of texts."""

    def inputs(texts: Sequence[str]) -> Mapping[str, Tensor]:
        tokens = tokenizer(texts)
        return {"text": tokens.ids, **({} if tokens.mask is None else {"text_mask": tokens.mask})}

    return inputs


def class_vectors(
    who: str, runner: Runner, names: Sequence[str], templates: Sequence[str], tokenize: Tokenize
) -> Tensor:
    """(K, E): the classes' vectors. Every process makes them all, in equally many forward passes. Raises
    UserError for a model, called `who`, without a text tower."""
    classes, parts = max(1, _TEXTS // len(templates)), []
    for start in range(0, len(names), classes):
        some = names[start : start + classes]
        texts = [text for each in some for text in described(each, templates)]
        # no picture: no item of the split
        batch = Batch(tokenize(texts), {}, torch.zeros(0, dtype=torch.int64), {"samples": 0})
        found = torch.from_numpy(embedded(who, runner, batch, ("text",))["text"])
        assert len(found) == len(texts), "a row of the tokenizer a text"
        parts.append(found.unflatten(0, (len(some), -1)).mean(dim=1))
    return F.normalize(torch.cat(parts), dim=-1)


@dataclass
class ZeroShotTally(Tally):
    """weights: (K, E) by model, float32 of length 1; they stay with the process that made them."""

    weights: dict[str, Tensor] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "weights": {}}


@dataclass(frozen=True)
class ZeroShotEvaluator:
    """Measures models with an image and a text tower as classifiers on one split.

    batches:     as `ClassificationEvaluator` has them: inputs of the image tower, targets `classes`
    class_names: (K,), as templates are to say them
    templates:   each with one {c} or {}
    tokenize:    texts to the inputs of the text tower: `text` (M, L), and `text_mask` where it has one
    pictures:    of items by their number in the split's source, (N, H, W, 3) uint8
    name:        tells several such evaluators apart: its keys are then zero_shot_NAME_top1
    """

    METRICS: ClassVar[tuple[Metric, ...]] = metrics_for("zero_shot", "zero-shot")

    split: str
    batches: Callable[[Pass], Iterator[Batch]]
    class_names: Sequence[str]
    templates: Sequence[str]
    tokenize: Tokenize
    pictures: Callable[[Ints], npt.NDArray[np.uint8]]
    name: str = ""

    @staticmethod
    def metrics_of(name: str) -> tuple[Metric, ...]:
        """Of the evaluator of that name."""
        return metrics_for(*_called(name)) if name else ZeroShotEvaluator.METRICS

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return self.metrics_of(self.name)

    def __post_init__(self) -> None:
        assert self.templates and all(len(_PLACE.findall(each)) == 1 for each in self.templates)

    def start(self) -> ZeroShotTally:
        return ZeroShotTally()

    def add(self, tally: ZeroShotTally, runners: Mapping[str, Runner], batch: Batch) -> None:
        """Raises UserError for a model without one of the towers."""
        labels = batch.targets["classes"].cpu()
        tally.index.append(batch.index.cpu().numpy())
        tally.labels.append(labels.numpy())
        for name, runner in runners.items():
            # pictures first: a model's speed is that of batches like its first
            image = torch.from_numpy(embedded(name, runner, batch, ("image",))["image"])
            if name not in tally.weights:
                tally.weights[name] = class_vectors(
                    name, runner, self.class_names, self.templates, self.tokenize
                )
            # the factor is CLIP's limit, as CLIP_benchmark has it; no metric here depends on it
            logits = 100 * image @ tally.weights[name].T
            tally.scores.setdefault(name, []).append(Scores.of(logits, labels))

    def finish(self, tallies: Sequence[Tally]) -> dict[str, Outcome]:
        """Raises UserError where there is no item at all."""
        return self._named.finish(tallies)

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        """Percent of items to which both give the same class."""
        return self._named.compare(a, b)

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        """Where student and teacher differ, both err, both are right; of many classes."""
        return self._named.samples(outcomes, count)

    @property
    def _named(self) -> NamedClassification:
        plain = ClassificationEvaluator(self.split, self.batches, self.class_names, self.pictures)
        return NamedClassification(*_called(self.name), plain)


def _called(name: str) -> tuple[str, str]:
    """What keys and headings begin with."""
    return (f"zero_shot_{name}", f"zero-shot {name}") if name else ("zero_shot", "zero-shot")
