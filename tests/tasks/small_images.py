"""A small task of image classification, and what its batches are."""

from __future__ import annotations

from typing import Any

from transmamba.core.batch import Batch
from transmamba.core.task import Pass, Steps
from transmamba.data import Preprocessing
from transmamba.data.images.synthetic import Synthetic
from transmamba.tasks.image_classification import ImageClassification, ImageClassificationConfig

SMALL = Synthetic(num_train=40, num_test=11, num_classes=4, size=8)
EIGHT = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)


def task_of(**options: Any) -> ImageClassification:
    return ImageClassificationConfig(**{"data": SMALL, **options}).build(EIGHT)


def eval_of(
    task: ImageClassification, split: str = "test", batch_size: int = 5, **options: int
) -> list[Batch]:
    return list(task.eval_batches(split, Pass(batch_size=batch_size, **options)))


def first_of(task: ImageClassification) -> Batch:
    return next(task.train_batches(Steps(micro_batch=8, num_steps=1)))
