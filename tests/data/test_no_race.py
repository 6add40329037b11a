"""Batches are pure functions of (seed, epoch, index): nobody else's random numbers get into them.

While threads make batches, others seed and draw from every global generator there is, and mix batches, as a
trainer does with its own thread of a data loader beside it.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from transmamba.core.batch import Batch, image_batch
from transmamba.core.preprocessing import Preprocessing
from transmamba.data.images.augment import Augment
from transmamba.data.images.batches import TrainImages
from transmamba.data.images.synthetic import Synthetic
from transmamba.tasks.image_classification import ImageClassificationConfig

DATA = Synthetic(num_train=64, num_test=4, num_classes=4, size=24)
SIZE = Preprocessing((3, 16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
AUGMENTS = {
    "crops": Augment(random_resized_crop_scale=(0.3, 1.0), hflip=True, color_jitter=0.4, erasing=1.0),
    "rand": Augment(rand_augment="rand-m9-mstd0.5-inc1", crop_padding=2, hflip=True, erasing=1.0),
}
MIXED = ImageClassificationConfig(data=DATA, mixup=0.8, cutmix=1.0).build(SIZE)


@contextmanager
def disturbed() -> Iterator[None]:
    """Threads that change the global generators all the time, and hand over the interpreter often."""
    over, interval = threading.Event(), sys.getswitchinterval()

    def again(*actions: Callable[[], object]) -> None:
        while not over.is_set():
            for action in actions:
                action()

    images = image_batch(torch.rand(4, 3, 8, 8, generator=torch.Generator()), torch.arange(4))
    nuisances = [
        (lambda: random.seed(0), random.random, lambda: np.random.seed(0), np.random.rand),
        (lambda: torch.manual_seed(0), lambda: torch.rand(3)),
        (lambda: torch.default_generator.manual_seed(0), lambda: torch.rand(3)),
        (lambda: MIXED.change(images, 7),),
    ]
    threads = [threading.Thread(target=again, args=actions) for actions in nuisances]
    sys.setswitchinterval(1e-5)
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)


def _same(one: Batch, two: Batch) -> bool:
    mine, theirs = one.tensors(), two.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("name", AUGMENTS)
def test_what_other_threads_draw_is_in_no_batch(name: str) -> None:
    dataset = TrainImages(DATA.build("train"), np.arange(64), SIZE, AUGMENTS[name], seed=3)
    orders = [np.stack([np.full(8, epoch), (np.arange(8) * 7 + epoch) % 64], axis=1) for epoch in range(100)]
    alone = [dataset.batch(order) for order in orders]
    with disturbed(), ThreadPoolExecutor(max_workers=4) as pool:
        beside = list(pool.map(dataset.batch, orders))
    assert all(map(_same, alone, beside))


def test_mixing_in_several_threads_draws_what_it_draws_alone() -> None:
    batch = image_batch(torch.rand(8, 3, 16, 16, generator=torch.Generator()), torch.arange(8) % 4)
    alone = [MIXED.change(batch, seed) for seed in range(200)]
    with disturbed(), ThreadPoolExecutor(max_workers=4) as pool:
        beside = list(pool.map(lambda seed: MIXED.change(batch, seed), range(200)))
    assert all(map(_same, alone, beside))
