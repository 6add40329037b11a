"""Images mixed pairwise on their way to the model."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from transmamba.core.batch import Batch
from transmamba.core.task import Steps
from transmamba.data import Preprocessing
from transmamba.data.images.synthetic import Synthetic
from transmamba.tasks.image_classification import ImageClassification, ImageClassificationConfig

SMALL = Synthetic(num_train=40, num_test=11, num_classes=4, size=8)
EIGHT = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)


def _task(**options: Any) -> ImageClassification:
    return ImageClassificationConfig(**{"data": SMALL, **options}).build(EIGHT)


def _first(task: ImageClassification) -> Batch:
    return next(task.train_batches(Steps(micro_batch=8, num_steps=1)))


MIXES = [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}]


@pytest.mark.parametrize("options", MIXES)
def test_mixing_is_deterministic_sums_to_one_and_touches_no_generator(options: dict[str, float]) -> None:
    task = _task(**options)
    batch = _first(task)
    image = batch.inputs["image"].clone()
    state, python = torch.get_rng_state(), random.getstate()
    first, again = task.change(batch, 1), task.change(batch, 1)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert all(torch.equal(first.tensors()[name], again.tensors()[name]) for name in first.tensors())
    others = [task.change(batch, seed).inputs["image"] for seed in range(2, 6)]
    assert any(not torch.equal(first.inputs["image"], other) for other in others)
    shares = first.targets["classes"]
    assert shares.shape == (8, 4) and shares.is_floating_point()
    assert torch.allclose(shares.sum(1), torch.ones(8))
    assert torch.equal(batch.inputs["image"], image) and torch.equal(first.index, batch.index)
    assert first.counts == {"samples": 8}


@pytest.mark.parametrize("options", MIXES)
def test_mixing_is_torchvisions_under_the_same_seed(options: dict[str, float]) -> None:
    task = _task(**options)
    batch = _first(task)
    ways: list[Any] = [v2.MixUp(alpha=options["mixup"], num_classes=4)] if "mixup" in options else []
    ways += [v2.CutMix(alpha=options["cutmix"], num_classes=4)] if "cutmix" in options else []
    for seed in (0, 1, 2, 12345678901234567890):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            image, classes = v2.RandomChoice(ways)(batch.inputs["image"], batch.targets["classes"])
        mixed = task.change(batch, seed)
        assert torch.equal(mixed.inputs["image"], image) and torch.equal(mixed.targets["classes"], classes)


def test_mixup_shares_are_those_of_the_pixels() -> None:
    task = _task(mixup=1.0)
    batch = _first(task)
    mixed = task.change(batch, 3)
    image, shares = batch.inputs["image"], mixed.targets["classes"]
    hot = torch.nn.functional.one_hot(batch.targets["classes"], 4).float()
    partner, share = hot.roll(1, 0), None
    for row in range(8):
        if not torch.equal(hot[row], partner[row]):
            share = shares[row][batch.targets["classes"][row]]
    assert share is not None and 0 < share < 1
    assert torch.allclose(shares, share * hot + (1 - share) * partner, atol=1e-6)
    assert torch.allclose(mixed.inputs["image"], share * image + (1 - share) * image.roll(1, 0), atol=1e-5)


def test_both_ways_of_mixing_occur_and_off_means_untouched() -> None:
    batch = _first(_task())
    assert _task().change(batch, 0) is batch
    task, image = _task(mixup=0.8, cutmix=0.8), batch.inputs["image"]
    kept = [(task.change(batch, seed).inputs["image"] == image).float().mean() for seed in range(20)]
    # cutmix leaves the pixels outside its rectangle as they were, mixup leaves almost none
    assert any(share > 0.05 for share in kept) and any(share < 0.05 for share in kept)
