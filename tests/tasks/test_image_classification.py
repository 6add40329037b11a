from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest
import torch

from transmamba.config.load import Part, dump, parse
from transmamba.config.registry import TASKS
from transmamba.data import ArraySource, Augment, Preprocessing
from transmamba.data.images.digits import Digits
from transmamba.data.images.synthetic import Synthetic
from transmamba.errors import ConfigError, UserError
from transmamba.tasks.image_classification import ImageClassification, ImageClassificationConfig

SMALL = Synthetic(num_train=40, num_test=11, num_classes=4, size=8)
EIGHT = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)


def _task(**options: Any) -> ImageClassification:
    return ImageClassificationConfig(**{"data": SMALL, **options}).build(EIGHT)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    task: Annotated[Any, Part(TASKS)]


def test_configuration_from_plain_values_and_back() -> None:
    values = {
        "name": "image_classification",
        "data": {"name": "digits", "folds": 5, "fold": 1},
        "fraction": 0.5,
        "augment": {"crop_padding": 1, "random_resized_crop_scale": [0.5, 1.0]},
        "mixup": 0.8,
    }
    config = parse(Recipe, {"task": values}, "here").task
    assert config.data == Digits(folds=5, fold=1)
    assert config.augment == Augment(crop_padding=1, random_resized_crop_scale=(0.5, 1.0))
    assert parse(Recipe, dump(Recipe(task=config)), "here").task == config


def test_mistakes_in_a_recipe_name_their_place() -> None:
    values = {
        "name": "image_classification",
        "data": {"name": "digit"},
        "fraction": 1.5,
        "augment": {"hflipp": True, "erasing": 0.1},
    }
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, {"task": values}, "here")
    assert "task.data: unknown data reader 'digit'; did you mean 'digits'?" in str(caught.value)
    assert "task.augment.hflipp: unknown key; did you mean 'hflip'?" in str(caught.value)
    values |= {"data": "digits", "augment": {}}
    with pytest.raises(ConfigError, match=r"task: fraction 1\.5: must be above 0 and at most 1"):
        parse(Recipe, {"task": values}, "here")


def test_what_it_tells_about_the_data() -> None:
    task = _task()
    assert task.num_classes == 4 and task.classes[3] == "class 3" and task.num_train == 40
    assert task.eval_split == "test" and task.indices("test").tolist() == list(range(11))
    assert task.preprocessing is EIGHT
    assert task.labels("train").tolist() == [n % 4 for n in range(40)]


def test_fractions_are_nested_and_stratified_also_within_a_half() -> None:
    half = _task(partition="first_half")
    small = _task(partition="first_half", fraction=0.2)
    other = _task(partition="second_half", fraction=0.2, fraction_seed=9)
    assert half.num_train == 20 and set(small.train_indices) < set(half.train_indices)
    assert np.bincount(small.labels("train")).tolist() == [1, 1, 1, 1]
    assert not set(other.train_indices) & set(half.train_indices)


def test_validation_is_held_out_whatever_else_is_chosen() -> None:
    task = _task(validation=0.3)
    held = set(task.indices("validation"))
    assert task.eval_split == "validation" and len(held) == 12 and task.num_train == 28
    assert np.bincount(task.labels("validation")).tolist() == [3, 3, 3, 3]
    for options in ({"partition": "second_half"}, {"fraction": 0.5}, {"fraction_seed": 3}):
        other = _task(validation=0.3, **options)
        assert set(other.indices("validation")) == held and not held & set(other.train_indices)
    index = torch.cat([batch.index for batch in task.eval_batches("validation", batch_size=5)])
    assert index.tolist() == sorted(held)
    assert sum(map(len, task.eval_batches("test", batch_size=5))) == 11  # still there when asked for
    with pytest.raises(UserError, match=r"no validation split: write test, or set task.validation"):
        _task().eval_batches("validation", batch_size=5)
    with pytest.raises(UserError, match="split 'dev': write train, validation or test"):
        task.eval_batches("dev", batch_size=5)


def test_the_final_split_may_be_the_test_set_where_another_is_watched() -> None:
    assert _task(validation=0.3).final_split == "validation" and _task().final_split == "test"
    task = _task(validation=0.3, final_split="test")
    assert (task.eval_split, task.final_split) == ("validation", "test")
    with pytest.raises(UserError, match="validation is 0; hold out a share"):
        _task(final_split="validation")


def test_training_stays_within_the_chosen_images_and_resumes() -> None:
    task = _task(fraction=0.5, augment=Augment(crop_padding=1, hflip=True))
    options: dict[str, Any] = {"micro_batch": 4, "accumulation": 2, "seed": 3}
    batches = list(task.train_batches(num_steps=5, **options))
    assert len(batches) == 10
    seen = torch.cat([batch.index for batch in batches])
    assert sorted(seen.tolist()) == sorted(2 * task.train_indices.tolist())
    tail = list(task.train_batches(num_steps=2, start_step=3, **options))
    assert torch.equal(torch.cat([b.images for b in tail]), torch.cat([b.images for b in batches[6:]]))
    ranks = [list(task.train_batches(num_steps=5, rank=r, world=2, micro_batch=4, seed=3)) for r in (0, 1)]
    assert torch.equal(seen[:8], torch.cat([ranks[0][0].index, ranks[1][0].index]))


def test_calibration_is_fixed_and_unaugmented() -> None:
    task = _task(augment=Augment(crop_padding=3, hflip=True), fraction=0.5)
    batches = task.calibration(10, 4)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    index = torch.cat([batch.index for batch in batches])
    assert len(set(index.tolist())) == 10 and set(index.tolist()) <= set(task.train_indices.tolist())
    assert torch.equal(index, torch.cat([batch.index for batch in task.calibration(10, 5)]))
    pixels = SMALL.build("train").image(int(index[0]))
    assert torch.equal(batches[0].images[0], EIGHT.eval_transform()(pixels))
    assert sum(map(len, task.calibration(1000, 64))) == 20


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
def test_mixing_is_deterministic_sums_to_one_and_touches_no_generator(options: dict[str, float]) -> None:
    task = _task(**options)
    batch = next(task.train_batches(micro_batch=8, num_steps=1))
    images = batch.images.clone()
    state, python = torch.get_rng_state(), random.getstate()
    first, again = task.mix(batch, 1), task.mix(batch, 1)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert torch.equal(first.images, again.images) and torch.equal(first.targets, again.targets)
    assert any(not torch.equal(first.images, task.mix(batch, seed).images) for seed in range(2, 6))
    assert first.targets.shape == (8, 4) and first.targets.is_floating_point()
    assert torch.allclose(first.targets.sum(1), torch.ones(8))
    assert torch.equal(batch.images, images) and torch.equal(first.index, batch.index)


def test_mixup_shares_are_those_of_the_pixels() -> None:
    task = _task(mixup=1.0)
    batch = next(task.train_batches(micro_batch=8, num_steps=1))
    mixed = task.mix(batch, 3)
    hot = torch.nn.functional.one_hot(batch.targets, 4).float()
    partner, share = hot.roll(1, 0), None
    for row in range(8):
        if not torch.equal(hot[row], partner[row]):
            share = mixed.targets[row][batch.targets[row]]
    assert share is not None and 0 < share < 1
    assert torch.allclose(mixed.targets, share * hot + (1 - share) * partner, atol=1e-6)
    assert torch.allclose(
        mixed.images, share * batch.images + (1 - share) * batch.images.roll(1, 0), atol=1e-5
    )


def test_both_ways_of_mixing_occur_and_off_means_untouched() -> None:
    batch = next(_task().train_batches(micro_batch=8, num_steps=1))
    assert _task().mix(batch, 0) is batch
    task = _task(mixup=0.8, cutmix=0.8)
    kept = [(task.mix(batch, seed).images == batch.images).float().mean() for seed in range(20)]
    # cutmix leaves the pixels outside its rectangle as they were, mixup leaves almost none
    assert any(share > 0.05 for share in kept) and any(share < 0.05 for share in kept)


def test_pictures_for_the_report() -> None:
    config = ImageClassificationConfig(data=Digits())
    task = config.build(Preprocessing((1, 16, 16), (0.5,), (0.5,)))
    pictures = task.images(np.array([4, 0]))
    assert pictures.shape == (2, 16, 16, 3) and pictures.dtype == np.uint8
    same = config.build(Preprocessing((1, 8, 8), (0.5,), (0.5,))).images(np.array([4]), "train")
    assert np.array_equal(same[0, ..., 1], np.asarray(Digits().build("train").image(4)))
    assert task.images(np.zeros(0, dtype=np.int64)).shape == (0, 16, 16, 3)


def test_a_teacher_of_another_head_is_sent_to_fine_tuning() -> None:
    _task().check_classes(4)
    message = (
        "teacher has 1000 classes but the data has 4: class 0, class 1, class 2, class 3; "
        "fit its head first: recipes/distill.py --config recipes/configs/finetune_head.yaml"
    )
    with pytest.raises(UserError) as caught:
        _task().check_classes(1000)
    assert str(caught.value) == message
    with pytest.raises(UserError, match=r"^student has 10 classes"):
        _task().check_classes(10, "student")


@dataclass(frozen=True, kw_only=True)
class Disagreeing:
    """A reader whose test split has a class too many; without `tested`, it has no test split."""

    tested: bool = True

    def build(self, split: str) -> ArraySource:
        if split == "test" and not self.tested:
            raise UserError("no test split")
        classes = tuple("abc"[: 2 if split == "train" else 3])
        return ArraySource(np.zeros((6, 8, 8, 3), dtype=np.uint8), np.arange(6, dtype=np.int64) % 2, classes)


def test_splits_that_disagree_or_are_missing_are_found_before_training() -> None:
    with pytest.raises(UserError, match="train has 2 classes but test has 3"):
        _task(data=Disagreeing())
    with pytest.raises(UserError, match="no test split"):
        _task(data=Disagreeing(tested=False))
    assert _task(data=Disagreeing(tested=False), validation=0.4).num_train == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fraction": 0.0}, "fraction 0.0"),
        ({"validation": 1.0}, "validation 1.0"),
        ({"mixup": -0.1}, "mixup -0.1"),
    ],
)
def test_configuration_mistakes(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageClassificationConfig(data=SMALL, **options)  # type: ignore[arg-type]
