"""Data sets of images: the same pixels whoever makes a batch, and however."""

from __future__ import annotations

import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms

from transmamba.core.batch import Batch
from transmamba.core.task import Steps
from transmamba.data import ArraySource, Augment, Preprocessing
from transmamba.data.images.augment import Moves
from transmamba.data.images.batches import EvalImages, TrainImages
from transmamba.data.images.folder import ImageFolder
from transmamba.data.stream import StepSampler, in_order, load
from transmamba.errors import UserError

PLAIN = Augment()
MOVES = Augment(crop_padding=2, hflip=True)
PICTURES = Augment(random_resized_crop_scale=(0.3, 1.0), hflip=True, color_jitter=0.4, erasing=0.5)
RANDOM = Augment(rand_augment="rand-m9-mstd0.5-inc1", crop_padding=1, erasing=0.3)
AUGMENTS = {"plain": PLAIN, "moves": MOVES, "pictures": PICTURES, "rand": RANDOM}
STEPS = Steps(micro_batch=8, seed=5, num_steps=6)


class NotAnArray(ArraySource):
    """The same pictures, one at a time: sends a data set along the general path."""

    def array(self) -> None:  # type: ignore[override]
        return None


def _arrays(count: int = 23, channels: int = 3) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 10, channels), dtype=np.uint8)
    return ArraySource(pixels, np.arange(count, dtype=np.int64) % 3, ("a", "b", "c"))


def _preprocessing(channels: int = 3) -> Preprocessing:
    return Preprocessing((channels, 12, 10), (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels])


def _dataset(augment: Augment, *, general: bool = False, seed: int = 5, channels: int = 3) -> TrainImages:
    source = _arrays(channels=channels)
    if general:
        source = NotAnArray(source.pixels, source.labels, source.classes)
    return TrainImages(source, np.arange(1, 23), _preprocessing(channels), augment, seed)


def _train(dataset: TrainImages, workers: int = 0, **changes: int) -> list[Batch]:
    steps = replace(STEPS, **changes)  # type: ignore[arg-type]
    sampler = StepSampler(num_items=len(dataset.indices), steps=steps)
    return list(load(dataset, sampler, steps.micro_batch, workers=workers))


def _together(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([batch.tensors()[name] for batch in batches]) for name in batches[0].tensors()}


def _assert_same(one: list[Batch], two: list[Batch]) -> None:
    one_tensors, two_tensors = _together(one), _together(two)
    assert one_tensors.keys() == two_tensors.keys() == {"input/image", "target/classes", "index"}
    for name in one_tensors:
        assert torch.equal(one_tensors[name], two_tensors[name])


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("name", AUGMENTS)
def test_the_same_pixels_however_a_step_is_divided(name: str, general: bool) -> None:
    dataset = _dataset(AUGMENTS[name], general=general)
    whole = _train(dataset)
    assert all(batch.counts == {"samples": 8} for batch in whole)
    _assert_same(whole, _train(dataset, micro_batch=1, accumulation=8))
    ranks = [_train(dataset, micro_batch=4, rank=rank, world=2) for rank in (0, 1)]
    _assert_same(whole, [part for pair in zip(*ranks, strict=True) for part in pair])


@pytest.mark.parametrize("name", AUGMENTS)
def test_workers_change_nothing(name: str) -> None:
    dataset = _dataset(AUGMENTS[name], general=True)
    alone, helped = (_train(dataset, workers) for workers in (0, 2))
    assert len(alone) == len(helped) == 6
    _assert_same(alone, helped)


@pytest.mark.parametrize("name", AUGMENTS)
def test_data_sets_reach_workers_that_are_not_forked(name: str) -> None:
    dataset = _dataset(AUGMENTS[name], general=True)
    copy = pickle.loads(pickle.dumps(dataset))
    _assert_same(*(_train(d, num_steps=1) for d in (dataset, copy)))


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_tail(workers: int) -> None:
    dataset = _dataset(RANDOM)
    whole = _train(dataset, micro_batch=4, accumulation=2)
    tail = _train(dataset, workers, micro_batch=4, accumulation=2, start_step=4, num_steps=2)
    assert len(tail) == 4
    _assert_same(tail, whole[8:])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_are_left_alone(workers: int) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index, union-attr]
    for augment in (PICTURES, RANDOM):
        _train(_dataset(augment), workers, num_steps=2)
    list(load(EvalImages(_arrays(), _preprocessing()), [np.arange(9)], 9, workers=workers))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index, arg-type]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", [PLAIN, MOVES, Augment(hflip=True), Augment(crop_padding=3)])
def test_indexing_a_batch_equals_going_through_pictures(augment: Augment, channels: int) -> None:
    fast, general = (_dataset(augment, general=general, channels=channels) for general in (False, True))
    assert fast.images.array is not None and general.images.array is None
    assert fast.quick(8) and not general.quick(8) and not fast.quick(2**20)
    _assert_same(_train(fast), _train(general))


@pytest.mark.parametrize("general", [False, True])
def test_without_augmentation_it_is_torchvisions_totensor_and_normalize(general: bool) -> None:
    mean, std = _preprocessing().mean, _preprocessing().std
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    for batch in _train(_dataset(PLAIN, general=general), num_steps=3):
        images = batch.inputs["image"]
        assert images.is_contiguous() and images.dtype == torch.float32
        for image, target, index in zip(images, batch.targets["classes"], batch.index, strict=True):
            assert torch.equal(image, reference(_arrays().image(int(index))))
            assert target == index % 3


def test_grayscale_pictures_feed_a_colour_model() -> None:
    gray = _arrays(channels=1)
    fast = TrainImages(gray, np.arange(23), _preprocessing(3), MOVES, 0)
    slow = TrainImages(
        NotAnArray(gray.pixels, gray.labels, gray.classes), np.arange(23), _preprocessing(3), MOVES, 0
    )
    assert fast.images.array is not None and slow.images.array is None
    _assert_same(_train(fast), _train(slow))


def test_crops_are_windows_of_the_black_padded_picture_and_cover_all_places() -> None:
    pixels = np.random.default_rng(1).integers(1, 256, (1, 6, 6, 1), dtype=np.uint8)
    source = ArraySource(pixels, np.zeros(1, dtype=np.int64), ("a",))
    dataset = TrainImages(source, np.arange(1), Preprocessing((1, 6, 6), (0.0,), (1 / 255,)), MOVES, 0)
    padded = np.pad(pixels[0, ..., 0], 2)
    windows = {}
    for mirrored in (False, True):
        for top in range(5):
            for left in range(5):
                window = padded[top : top + 6, left : left + 6]
                windows[(window[:, ::-1] if mirrored else window).tobytes()] = (mirrored, top, left)
    (batch,) = _train(dataset, micro_batch=2000, num_steps=1)
    seen = [windows[image[0].round().to(torch.uint8).numpy().tobytes()] for image in batch.inputs["image"]]
    assert len(set(seen)) == 50
    assert 900 < sum(mirrored for mirrored, _, _ in seen) < 1100


def test_crops_and_mirrors_are_those_that_earlier_runs_drew() -> None:
    """Noted down when runs were first trained with them: a run that goes on must see the same pictures."""
    epoch, index = np.array([0, 0, 1, 7]), np.array([0, 1, 1, 49_999])
    moves = Moves.draw(Augment(crop_padding=4, hflip=True), 3, epoch, index)
    assert (moves.top.tolist(), moves.left.tolist()) == ([0, 7, 5, 8], [4, 5, 6, 8])
    assert moves.mirror.tolist() == [True, True, False, True]


def test_augmentation_differs_between_epochs_and_seeds() -> None:
    for augment in (MOVES, PICTURES, RANDOM):

        def images(epoch: int = 0, seed: int = 5, augment: Augment = augment) -> torch.Tensor:
            return _dataset(augment, seed=seed).batch(np.array([[epoch, 3]])).inputs["image"]

        assert torch.equal(images(), images())
        assert any(not torch.equal(images(), images(seed=seed)) for seed in range(6, 12))
        assert any(not torch.equal(images(), images(epoch)) for epoch in range(8))


@pytest.mark.parametrize("name", AUGMENTS)
def test_grayscale_models_can_be_augmented(name: str) -> None:
    (batch,) = _train(_dataset(AUGMENTS[name], general=True, channels=1), num_steps=1)
    images = batch.inputs["image"]
    assert images.shape == (8, 1, 12, 10) and images.isfinite().all()


def test_pictures_of_another_size_are_resized_as_for_evaluation() -> None:
    small = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, crop_pct=0.8)
    dataset = TrainImages(_arrays(), np.arange(23), small, PLAIN, 0)
    assert dataset.images.array is None
    (batch,) = _train(dataset, num_steps=1)
    for image, index in zip(batch.inputs["image"], batch.index, strict=True):
        assert torch.equal(image, small.eval_transform()(_arrays().image(int(index))))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("general", [False, True])
def test_evaluation_is_in_order_and_complete(general: bool, workers: int) -> None:
    source = _arrays()
    if general:
        source = NotAnArray(source.pixels, source.labels, source.classes)
    chosen = np.array([3, 1, 22, 7, 8])
    images = EvalImages(source, _preprocessing())
    batches = list(load(images, in_order(chosen, 2), 2, workers=workers))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    together = _together(batches)
    assert together["index"].tolist() == chosen.tolist()
    assert together["target/classes"].tolist() == (chosen % 3).tolist()
    expected = torch.stack([_preprocessing().eval_transform()(source.image(int(i))) for i in chosen])
    assert torch.equal(together["input/image"], expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_one_line_from_any_process(folder: Path, workers: int) -> None:
    source = ImageFolder(root=str(folder)).build("train")
    broken = folder / "train" / "cat" / "0.png"
    broken.write_bytes(b"no picture")
    dataset = TrainImages(source, np.arange(18), _preprocessing(), PLAIN, 0)
    evaluated = load(EvalImages(source, _preprocessing()), in_order(np.arange(18), 6), 6, workers=workers)
    for batches in (lambda: _train(dataset, workers, micro_batch=6), lambda: list(evaluated)):
        with pytest.raises(UserError, match=rf"^{broken}: does not decode") as caught:
            batches()
        assert "\n" not in str(caught.value)
