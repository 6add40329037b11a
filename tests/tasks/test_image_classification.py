from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import EIGHT, SMALL, eval_of, task_of

from transmamba.config.load import Part, dump, parse
from transmamba.config.registry import TASKS
from transmamba.core.batch import Batch
from transmamba.core.task import Metric, Pass, Steps, Task
from transmamba.data import ArraySource, Augment, Preprocessing
from transmamba.data.images.digits import Digits
from transmamba.data.images.folder import ImageFolder
from transmamba.errors import ConfigError, UserError
from transmamba.tasks.image_classification import ImageClassificationConfig


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
    task = task_of()
    assert task.num_classes == 4 and task.classes[3] == "class 3" and task.num_train == 40
    assert task.watched == task.final == "test"
    assert task.indices("test").tolist() == list(range(11))
    assert task.preprocessing is EIGHT
    assert task.labels("train").tolist() == [n % 4 for n in range(40)]


def test_fractions_are_nested_and_stratified_also_within_a_half() -> None:
    half = task_of(partition="first_half")
    small = task_of(partition="first_half", fraction=0.2)
    other = task_of(partition="second_half", fraction=0.2, fraction_seed=9)
    assert half.num_train == 20 and set(small.train_indices) < set(half.train_indices)
    assert np.bincount(small.labels("train")).tolist() == [1, 1, 1, 1]
    assert not set(other.train_indices) & set(half.train_indices)


def test_validation_is_held_out_whatever_else_is_chosen() -> None:
    task = task_of(validation=0.3)
    held = set(task.indices("validation"))
    assert task.watched == "validation" and len(held) == 12 and task.num_train == 28
    assert np.bincount(task.labels("validation")).tolist() == [3, 3, 3, 3]
    for options in ({"partition": "second_half"}, {"fraction": 0.5}, {"fraction_seed": 3}):
        other = task_of(validation=0.3, **options)
        assert set(other.indices("validation")) == held and not held & set(other.train_indices)
    index = torch.cat([batch.index for batch in eval_of(task, "validation")])
    assert index.tolist() == sorted(held)
    assert sum(map(len, eval_of(task))) == 11  # still there when asked for
    with pytest.raises(UserError, match=r"no validation split: write test, or set task.validation"):
        task_of().eval_batches("validation", Pass(batch_size=5))
    with pytest.raises(UserError, match="split 'dev': write train, validation or test"):
        task.eval_batches("dev", Pass(batch_size=5))


def test_the_final_split_may_be_the_test_set_where_another_is_watched() -> None:
    assert task_of(validation=0.3).final == "validation" and task_of().final == "test"
    task = task_of(validation=0.3, final_split="test")
    assert (task.watched, task.final) == ("validation", "test")
    with pytest.raises(UserError, match="validation is 0; hold out a share"):
        task_of(final_split="validation")


def test_training_stays_within_the_chosen_images_and_resumes() -> None:
    task = task_of(fraction=0.5, augment=Augment(crop_padding=1, hflip=True))
    options: dict[str, Any] = {"micro_batch": 4, "accumulation": 2, "seed": 3}
    batches = list(task.train_batches(Steps(num_steps=5, **options)))
    assert len(batches) == 10 and all(batch.counts == {"samples": 4} for batch in batches)
    seen = torch.cat([batch.index for batch in batches])
    assert sorted(seen.tolist()) == sorted(2 * task.train_indices.tolist())
    tail = list(task.train_batches(Steps(num_steps=2, start_step=3, **options)))
    assert torch.equal(_images(tail), _images(batches[6:]))
    ranks = [Steps(num_steps=5, rank=rank, world=2, micro_batch=4, seed=3) for rank in (0, 1)]
    first = [next(task.train_batches(steps)) for steps in ranks]
    assert torch.equal(seen[:8], torch.cat([batch.index for batch in first]))


def _images(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.inputs["image"] for batch in batches])


def test_calibration_is_fixed_and_unaugmented() -> None:
    task = task_of(augment=Augment(crop_padding=3, hflip=True), fraction=0.5)
    batches = list(task.calibration(10, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    index = torch.cat([batch.index for batch in batches])
    assert len(set(index.tolist())) == 10 and set(index.tolist()) <= set(task.train_indices.tolist())
    assert torch.equal(index, torch.cat([batch.index for batch in task.calibration(10, 5)]))
    pixels = SMALL.build("train").image(int(index[0]))
    assert torch.equal(batches[0].inputs["image"][0], EIGHT.eval_transform()(pixels))
    assert sum(map(len, task.calibration(1000, 64))) == 20


def test_pictures_for_the_report() -> None:
    config = ImageClassificationConfig(data=Digits())
    task = config.build(Preprocessing((1, 16, 16), (0.5,), (0.5,)))
    pictures = task.images(np.array([4, 0]))
    assert pictures.shape == (2, 16, 16, 3) and pictures.dtype == np.uint8
    same = config.build(Preprocessing((1, 8, 8), (0.5,), (0.5,))).images(np.array([4]), "train")
    assert np.array_equal(same[0, ..., 1], np.asarray(Digits().build("train").image(4)))
    assert task.images(np.zeros(0, dtype=np.int64)).shape == (0, 16, 16, 3)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A reader of 12 images, each of the value of its class's place in the alphabet."""

    names: tuple[str, ...] = ("ant", "bee", "cat")

    def build(self, split: str) -> ArraySource:
        labels = np.arange(12, dtype=np.int64) % len(self.names)
        pixels = np.zeros((12, 8, 8, 3), dtype=np.uint8) + labels[:, None, None, None].astype(np.uint8)
        return ArraySource(pixels, labels, self.names)


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the evaluator of classifiers: what it is given is what is looked at here."""

    @dataclass
    class ClassificationEvaluator:
        METRICS = (Metric(key="top1", label="top-1 %", headline=True),)
        split: str
        batches: Callable[[Pass], Iterator[Batch]]
        class_names: Sequence[str]
        pictures: Callable[[Any], Any]

    module = ModuleType("transmamba.evaluation.classification")
    module.ClassificationEvaluator = ClassificationEvaluator  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("evaluation")
def test_evaluators_are_given_the_split_and_the_names() -> None:
    task: Any = task_of(data=Named(), validation=0.3)
    teacher = SimpleNamespace(num_classes=3, class_names=("cat", "ant", "bee"))
    task.check(teacher, "teacher")
    (evaluator,) = task.evaluators("validation")
    assert evaluator.split == "validation" and evaluator.class_names == ("cat", "ant", "bee")
    assert [metric.key for metric in task.metrics] == ["top1"] and isinstance(task, Task)
    held = task.indices("validation")
    batches = list(evaluator.batches(Pass(batch_size=2)))
    assert torch.cat([batch.index for batch in batches]).tolist() == held.tolist()
    ranks = [list(evaluator.batches(Pass(batch_size=2, rank=rank, world=2))) for rank in (0, 1)]
    assert sorted(int(n) for part in ranks for batch in part for n in batch.index) == sorted(held)
    assert evaluator.pictures(held[:2]).shape == (2, 8, 8, 3)
    with pytest.raises(UserError, match="split 'dev'"):
        task.evaluators("dev")


def test_every_image_that_is_measured_is_looked_through(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("test", 4)):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8)).save(tmp_path / split / name / f"{number}.png")
    task = task_of(data=ImageFolder(root=str(tmp_path)), validation=0.3, final_split="test")
    assert list(task.look_through()) == []
    broken = {tmp_path / "test" / "bee" / "3.png"}
    for split, index in (("validation", task.indices("validation")[2]), ("train", task.train_indices[0])):
        path = tmp_path / "train" / ("ant" if index < 10 else "bee") / f"{index % 10}.png"
        path.write_bytes(b"no picture")
        broken |= {path} if split == "validation" else set()  # what is trained on is met in training
    (tmp_path / "test" / "bee" / "3.png").write_bytes(b"")
    lines = list(task.look_through())
    assert len(lines) == 2 and {Path(line.split(": does not decode")[0]) for line in lines} == broken
    assert list(task_of().look_through()) == []


@dataclass(frozen=True, kw_only=True)
class Disagreeing:
    """A reader whose test split has a class too many; without `tested`, it has no test split."""

    tested: bool = True

    def build(self, split: str) -> ArraySource:
        if split == "test" and not self.tested:
            raise UserError("no test split")
        classes = tuple("abc"[: 2 if split == "train" else 3])
        return ArraySource(np.zeros((6, 8, 8, 3), dtype=np.uint8), np.arange(6, dtype=np.int64) % 2, classes)


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A reader whose splits call a class by different names."""

    def build(self, split: str) -> ArraySource:
        return Named(names=tuple("abc" if split == "train" else "abd")).build(split)


def test_splits_that_disagree_or_are_missing_are_found_before_training() -> None:
    with pytest.raises(UserError, match="train has 2 classes but test has 3"):
        task_of(data=Disagreeing())
    with pytest.raises(UserError, match=r"different classes \(only in train: c; only in test: d\)"):
        task_of(data=Renamed())
    with pytest.raises(UserError, match="no test split"):
        task_of(data=Disagreeing(tested=False))
    assert task_of(data=Disagreeing(tested=False), validation=0.4).num_train == 4


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
