"""Image classification: any data reader, a model's own preprocessing, a resumable stream of batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from ..config.load import Part
from ..config.registry import READERS, TASKS
from ..core.batch import Batch
from ..core.preprocessing import Preprocessing, of_pictures
from ..core.task import Evaluator, Metric, Pass, Steps
from ..data.classes import count_of, disagreement, joined, names_of, numbered_as_text
from ..data.hashing import permutation
from ..data.images.augment import Augment
from ..data.images.batches import EvalImages, TrainImages, shown
from ..data.images.decoding import refusals
from ..data.images.mixing import mix
from ..data.images.source import ImageSource, Renumbered
from ..data.stream import in_order, load, train_stream
from ..data.subset import (
    Partition,
    check_fraction,
    check_held_out,
    held_out_of,
    hold_out,
    partition_half,
    stratified_fraction,
)
from ..errors import UserError

Indices = npt.NDArray[np.int64]

logger = logging.getLogger("transmamba.data")


@TASKS.register("image_classification")
@dataclass(frozen=True, kw_only=True)
class ImageClassificationConfig:
    """Images of `data`, one class each.

    data:          a data reader
    fraction:      share of each training class that is used
    fraction_seed: which images that share takes; with one seed, a smaller share lies within a larger one
    partition:     whole, or one of two disjoint halves of the training data (the teacher's, the student's)
    validation:    share of each training class held out as evaluation split `validation`, instead of `test`
    final_split:   what results.json is measured on, once: by default the split that training is watched on;
                   with a validation split, `test` keeps the test set out of everything but the results
    split_seed:    which images the halves and the validation split take; runs that share it share the splits
    augment:       random changes to training images
    mixup, cutmix: strength (alpha) of mixing images within a micro-batch, 0 for never; if both, one by chance
    """

    data: Annotated[Any, Part(READERS)]
    fraction: float = 1.0
    fraction_seed: int = 0
    partition: Partition = "whole"
    validation: float = 0.0
    final_split: Literal["validation", "test"] | None = None
    split_seed: int = 0
    augment: Augment = field(default_factory=Augment)
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(self.fraction)
        check_held_out(self.validation, self.final_split)
        if self.mixup < 0.0 or self.cutmix < 0.0:
            raise UserError(
                f"mixup {self.mixup}, cutmix {self.cutmix}: must be 0 (never) or above, such as 0.8"
            )

    def build(self, preprocessing: Preprocessing) -> ImageClassification:
        """Reads the data. Raises UserError as the reader does, and when the splits have different classes."""
        return ImageClassification(self, preprocessing)

    def build_training(self, preprocessing: Preprocessing) -> ImageClassification:
        """The same without evaluation splits."""
        return ImageClassification(self, preprocessing, measured=False)


class ImageClassification:
    """The data of one run, as one model sees it. A `core.task.Task`.

    preprocessing: the model's
    watched:       'validation' if a share of the training data is held out, 'test' otherwise
    final:         the split that the finished model is measured on
    measured:      whether it will be: else its evaluation splits are not opened
    train_indices: (num_train,) int64, the images trained on, by number in the training source
    """

    inputs, targets = ("image",), ("classes",)

    def __init__(
        self, config: ImageClassificationConfig, preprocessing: Preprocessing, measured: bool = True
    ) -> None:
        self.config = config
        self.preprocessing = of_pictures(preprocessing)
        self.watched = "validation" if config.validation else "test"
        self.final = config.final_split or self.watched
        self._train: ImageSource = config.data.build("train")
        self._test: ImageSource | None = None
        self._order: Indices | None = None
        self.train_indices, self._held_out = self._choose()
        self.num_train = len(self.train_indices)
        self.num_classes = len(self._train.classes)
        if measured and "test" in (self.watched, self.final):
            self._source("test")  # so that a missing test split is known before training, not after

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, by number: in the order of the model that was checked, where that has names."""
        return self._source("train").classes

    @property
    def metrics(self) -> tuple[Metric, ...]:
        from ..evaluation.classification import ClassificationEvaluator

        return ClassificationEvaluator.METRICS

    def check(self, model: Any, who: str) -> None:
        """Joins the data's classes with those of a teacher or a student, which from now on number them.

        By name where both have names, by position otherwise. A teacher may be without a head: it teaches
        features, and what needs its logits refuses it. Raises UserError when the model tells another number
        of classes apart, or others.
        """
        count = count_of(model)
        if not count and who == "teacher":
            return
        if not count and hasattr(model, "encode_image"):
            raise UserError(
                f"{who} compares pictures with texts and has no classes; the task image_text measures it "
                "(--task image_text), zero-shot on such data too (task.zero_shot in a recipe)"
            )
        if not count and getattr(model, "vocabulary", None):
            raise UserError(
                f"{who} predicts words and has no classes; the task questions measures a model that writes "
                "about pictures (--task questions), the task language one of texts"
            )
        if count != self.num_classes:
            raise UserError(
                f"{who} has {count or 'no'} classes but the data has {self.num_classes}: "
                f"{', '.join(self.classes[:5])}{' ...' if self.num_classes > 5 else ''}; "
                "fit its head first: recipes/distill.py --config recipes/configs/finetune_head.yaml"
            )
        names = names_of(model)
        order = joined(self._train.classes, names, who) if names and len(names) == count else None
        if order is not None:
            self._take_order(order, who)
        elif numbered_as_text(self.classes):
            shown = ", ".join(self.classes[:5])
            logger.warning("classes are numbered in the order %s ...: %s has no names to join", shown, who)

    def _take_order(self, order: Indices, who: str) -> None:
        """Number the classes as `who` does, and say so where the data's own order is another."""
        if self._order is not None and not np.array_equal(order, self._order):
            raise UserError(f"{who} numbers the same classes in another order than the model it goes with")
        moved = np.flatnonzero(order != np.arange(len(order)))
        if self._order is None and len(moved):
            name, number = self._train.classes[moved[0]], order[moved[0]]
            message = "the data's classes are numbered in %s's order, by name: %r is %d, not %d, and so on"
            logger.warning(message, who, name, number, moved[0])
        self._order = order

    def indices(self, split: str) -> Indices:
        """Numbers of the images of 'train' (those trained on), 'validation' or 'test' in their source."""
        if split == "train":
            return self.train_indices
        if split == "validation":
            return held_out_of(self._held_out)
        return np.arange(len(self._source(split)), dtype=np.int64)

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """Class numbers in the order of `indices(split)`."""
        return self._source(split).labels[self.indices(split)]

    def train_batches(self, steps: Steps) -> Iterator[Batch]:
        """A rank's micro-batches, from step `start_step` on. Not mixed: see `change`."""
        return train_stream(self.train_source(steps.seed), self.num_train, steps)

    def train_source(self, seed: int) -> TrainImages:
        """What makes a batch of (epoch, position) pairs, with the changes that `seed` draws."""
        source, augment = self._source("train"), self.config.augment
        return TrainImages(source, self.train_indices, self.preprocessing, augment, seed)

    def eval_batches(self, split: str, passing: Pass) -> Iterator[Batch]:
        """Images `indices(split)[rank::world]` in order, each once, through the evaluation transform."""
        parts = in_order(self.indices(split), passing.batch_size, passing.rank, passing.world)
        images = EvalImages(self._source(split), self.preprocessing)
        return load(images, parts, passing.batch_size, workers=passing.workers)

    def calibration(self, samples: int, batch_size: int) -> Iterator[Batch]:
        """A fixed random choice of training images (all if there are fewer), as evaluation sees them."""
        chosen = self.train_indices[permutation(self.num_train, self.config.split_seed)[:samples]]
        images = EvalImages(self._source("train"), self.preprocessing)
        return load(images, in_order(chosen, batch_size), batch_size)

    def change(self, batch: Batch, seed: int) -> Batch:
        """The batch with its images mixed pairwise and classes (B, K) that say in what shares; itself if off.

        What is drawn depends on `seed` alone, on any device; the pairs lie within the micro-batch, so here,
        and only here, its size matters.
        """
        mixup, cutmix = self.config.mixup, self.config.cutmix
        if not mixup and not cutmix:
            return batch
        image, classes = mix(
            batch.inputs["image"],
            batch.targets["classes"],
            num_classes=self.num_classes,
            mixup=mixup,
            cutmix=cutmix,
            seed=seed,
        )
        inputs, targets = {**batch.inputs, "image": image}, {**batch.targets, "classes": classes}
        return replace(batch, inputs=inputs, targets=targets)

    def evaluators(self, split: str) -> tuple[Evaluator, ...]:
        from ..evaluation.classification import ClassificationEvaluator

        self.indices(split)  # refuses a split that there is not
        batches, pictures = partial(self.eval_batches, split), partial(self.images, split=split)
        return (ClassificationEvaluator(split, batches, self.classes, pictures),)

    def images(self, indices: Indices, split: str = "test") -> npt.NDArray[np.uint8]:
        """Pictures to look at, (N, H, W, 3): resized and cropped as for evaluation, not normalised.

        indices: numbers in the split's source, such as `Batch.index`
        """
        return shown(self._source(split), indices, self.preprocessing)

    def look_through(self) -> Iterator[str]:
        """Decodes every image of the evaluation splits; a line for each that does not decode."""
        for split in dict.fromkeys((self.watched, self.final)):
            source = self._source(split)
            if source.array() is None:
                yield from refusals(self.indices(split), source.image, f"checking {split} images")

    def _choose(self) -> tuple[Indices, Indices]:
        """(trained on, held out): validation first, so that halves and fractions are measured alike."""
        config, labels = self.config, self._train.labels
        chosen, held_out = np.arange(len(labels), dtype=np.int64), np.zeros(0, dtype=np.int64)
        if config.validation:
            chosen, held_out = hold_out(labels, config.validation, config.split_seed)
        chosen = chosen[partition_half(labels[chosen], config.partition, config.split_seed)]
        chosen = chosen[stratified_fraction(labels[chosen], config.fraction, config.fraction_seed)]
        return chosen, held_out

    def _source(self, split: str) -> ImageSource:
        """The images that a split is of, their classes numbered as the checked model does."""
        if split not in ("train", "validation", "test"):
            raise UserError(f"split {split!r}: write train, validation or test")
        source = self._tested() if split == "test" else self._train
        return source if self._order is None else Renumbered.of(source, self._order)

    def _tested(self) -> ImageSource:
        if self._test is None:
            test: ImageSource = self.config.data.build("test")
            if len(test.classes) != self.num_classes:
                raise UserError(
                    f"train has {self.num_classes} classes but test has {len(test.classes)}: they must agree"
                )
            if test.classes != self._train.classes:
                difference = disagreement("train", self._train.classes, "test", test.classes)
                raise UserError(f"train and test have different classes ({difference or 'in another order'})")
            self._test = test
        return self._test
