"""Image classification: any data reader, a model's own preprocessing, a resumable stream of batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ..config.load import Part
from ..config.registry import READERS, TASKS
from ..core.batch import Batch
from ..core.preprocessing import Preprocessing
from ..data.hashing import permutation
from ..data.images.augment import Augment
from ..data.images.source import ImageSource
from ..data.stream import StepSampler, TrainImages, eval_batches, train_batches
from ..data.subset import Partition, check_fraction, hold_out, partition_half, stratified_fraction
from ..errors import UserError

Indices = npt.NDArray[np.int64]


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
        if not 0.0 <= self.validation < 1.0:
            raise UserError(f"validation {self.validation}: a share from 0 (none) to below 1, such as 0.1")
        if self.final_split == "validation" and not self.validation:
            raise UserError("final_split is 'validation', but validation is 0; hold out a share, such as 0.1")
        if self.mixup < 0.0 or self.cutmix < 0.0:
            raise UserError(
                f"mixup {self.mixup}, cutmix {self.cutmix}: must be 0 (never) or above, such as 0.8"
            )

    def build(self, preprocessing: Preprocessing) -> ImageClassification:
        """Reads the data. Raises UserError as the reader does, and when the splits have different classes."""
        return ImageClassification(self, preprocessing)


class ImageClassification:
    """The data of one run, as one model sees it.

    preprocessing: the model's
    eval_split:    'validation' if a share of the training data is held out, 'test' otherwise
    final_split:   what the finished model is measured on
    train_indices: (num_train,) int64, the images trained on, by number in the training source
    """

    def __init__(self, config: ImageClassificationConfig, preprocessing: Preprocessing) -> None:
        self.config = config
        self.preprocessing = preprocessing
        self.eval_split = "validation" if config.validation else "test"
        self.final_split = config.final_split or self.eval_split
        self._train: ImageSource = config.data.build("train")
        self._test: ImageSource | None = None
        self.train_indices, self._held_out = self._choose()
        if "test" in (self.eval_split, self.final_split):
            self._source("test")  # so that a missing test split is known before training, not after

    @property
    def classes(self) -> tuple[str, ...]:
        return self._train.classes

    @property
    def num_classes(self) -> int:
        return len(self._train.classes)

    @property
    def num_train(self) -> int:
        return len(self.train_indices)

    def indices(self, split: str) -> Indices:
        """Numbers of the images of 'train' (those trained on), 'validation' or 'test' in their source."""
        if split == "train":
            return self.train_indices
        if split == "validation":
            if not self.config.validation:
                raise UserError(
                    "no validation split: write test, or set task.validation to the share to hold out, "
                    "such as 0.1"
                )
            return self._held_out
        return np.arange(len(self._source(split)), dtype=np.int64)

    def labels(self, split: str) -> npt.NDArray[np.int64]:
        """Class numbers in the order of `indices(split)`."""
        return self._source(split).labels[self.indices(split)]

    def train_batches(
        self,
        *,
        micro_batch: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        start_step: int = 0,
        num_steps: int,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> Iterator[Batch]:
        """This rank's `num_steps * accumulation` micro-batches from optimizer step `start_step` on.

        They depend on nothing but the arguments: see `transmamba.data.stream`. Not mixed: see `mix`.
        """
        config = self.config
        dataset = TrainImages(self._train, self.train_indices, self.preprocessing, config.augment, seed)
        sampler = StepSampler(
            num_items=self.num_train,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=rank,
            world=world,
            seed=seed,
            start_step=start_step,
            num_steps=num_steps,
        )
        return train_batches(dataset, sampler, workers, pin_memory)

    def eval_batches(
        self,
        split: str = "test",
        *,
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> Iterator[Batch]:
        """Images `indices(split)[rank::world]` in order, each once, through the evaluation transform."""
        return eval_batches(
            self._source(split),
            self.indices(split),
            self.preprocessing,
            batch_size,
            workers,
            rank,
            world,
            pin_memory,
        )

    def calibration(self, num_images: int, batch_size: int) -> list[Batch]:
        """A fixed random choice of training images (all if there are fewer), as evaluation sees them."""
        chosen = self.train_indices[permutation(self.num_train, self.config.split_seed)[:num_images]]
        return list(eval_batches(self._train, chosen, self.preprocessing, batch_size))

    def mix(self, batch: Batch, seed: int) -> Batch:
        """The batch with its images mixed pairwise and targets (B, K) that say in what shares; itself if off.

        Zhang et al., mixup, ICLR 2018; Yun et al., CutMix, ICCV 2019. What is drawn depends on `seed` alone,
        on any device; the pairs lie within the micro-batch, so here, and only here, its size matters.
        """
        if not self.config.mixup and not self.config.cutmix:
            return batch
        from torchvision.transforms import v2

        ways: list[Any] = []
        if self.config.mixup:
            ways.append(v2.MixUp(alpha=self.config.mixup, num_classes=self.num_classes))
        if self.config.cutmix:
            ways.append(v2.CutMix(alpha=self.config.cutmix, num_classes=self.num_classes))
        # torchvision draws on the CPU wherever the images are, so no device's generator is touched.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            images, targets = v2.RandomChoice(ways)(batch.images, batch.targets)
        return Batch(images, targets, batch.index)

    def images(self, indices: Indices, split: str = "test") -> npt.NDArray[np.uint8]:
        """Pictures to look at, (N, H, W, 3): resized and cropped as for evaluation, not normalised.

        indices: numbers in the split's source, such as `Batch.index`
        """
        source, geometry = self._source(split), self.preprocessing.geometry()
        if not len(indices):
            return np.zeros((0, *self.preprocessing.input_size[1:], 3), dtype=np.uint8)
        return np.stack([np.array(geometry(source.image(int(i))).convert("RGB")) for i in indices])

    def check_classes(self, num_classes: int, who: str = "teacher") -> None:
        """Raises UserError when `who` was made for another number of classes."""
        if num_classes == self.num_classes:
            return
        shown = ", ".join(self.classes[:5]) + (" ..." if self.num_classes > 5 else "")
        raise UserError(
            f"{who} has {num_classes} classes but the data has {self.num_classes}: {shown}; "
            "fit its head first: recipes/distill.py --config recipes/configs/finetune_head.yaml"
        )

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
        if split in ("train", "validation"):
            return self._train
        if split != "test":
            raise UserError(f"split {split!r}: write train, validation or test")
        if self._test is None:
            test: ImageSource = self.config.data.build("test")
            if test.classes != self.classes:
                raise UserError(
                    f"train has {self.num_classes} classes but test has {len(test.classes)}: they must agree"
                )
            self._test = test
        return self._test
