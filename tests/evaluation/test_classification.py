"""Metrics against brute force in numpy."""

from __future__ import annotations

import contextlib
from typing import Any

import harness
import numpy as np
import pytest
import torch

from transmamba.core.batch import Batch
from transmamba.evaluation.classification import (
    Predictions,
    agreement,
    expected_calibration_error,
    logits_of,
    metrics,
    paired_bootstrap,
    predict,
    summarise,
)

CPU = torch.device("cpu")


def random_predictions(seed: int, images: int = 503, classes: int = 9) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(0, 1.5, (images, classes))
    logits[np.arange(images), labels] += 1.5
    return Predictions(torch.tensor(logits, dtype=torch.float32), torch.tensor(labels))


def brute_force(predictions: Predictions) -> dict[str, float]:
    logits, labels = predictions.logits.double().numpy(), predictions.labels.numpy()
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    top1 = top5 = nll = 0.0
    bins: list[list[tuple[float, float]]] = [[] for _ in range(15)]
    for row, label in zip(probabilities, labels, strict=True):
        rank = int((row > row[label]).sum())
        top1 += rank < 1
        top5 += rank < 5
        nll -= np.log(row[label])
        place = next(b for b in range(15) if b / 15 < row.max() <= (b + 1) / 15 + 1e-12)
        bins[place].append((row.max(), float(row.argmax() == label)))
    ece = 0.0
    for content in bins:
        if content:
            confidence, correct = np.mean(content, axis=0)
            ece += len(content) / len(labels) * abs(confidence - correct)
    count = len(labels)
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "ece": 100 * ece, "nll": nll / count}


@pytest.mark.parametrize("seed", range(3))
def test_metrics(seed: int) -> None:
    predictions = random_predictions(seed)
    assert metrics(predictions) == pytest.approx(brute_force(predictions), rel=1e-6)


def test_fewer_than_five_classes() -> None:
    assert metrics(random_predictions(0, classes=3))["top5"] == 100.0


def test_calibration_of_the_certain() -> None:
    """Certain and right: 0. Certain and wrong: 1. Certain and right half of the time: 1/2."""
    logits = torch.eye(4) * 1000
    right = torch.arange(4)
    assert expected_calibration_error(logits, right) == 0
    assert expected_calibration_error(logits, right.flip(0)) == pytest.approx(1)
    assert expected_calibration_error(logits, torch.tensor([0, 1, 3, 2])) == pytest.approx(0.5)


def test_agreement() -> None:
    a, b = random_predictions(0), random_predictions(1)
    wanted = np.mean(a.logits.numpy().argmax(1) == b.logits.numpy().argmax(1))
    assert agreement(a, b) == pytest.approx(100 * wanted)
    assert agreement(a, a) == 100.0


def test_paired_bootstrap_covers_the_difference() -> None:
    """Of 40 samples with a true difference of 10 points, about 95 % of the intervals hold it."""
    held = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        a, b = generator.random(400) < 0.8, generator.random(400) < 0.7
        mean, low, high = paired_bootstrap(a, b, draws=500, seed=seed)
        assert low <= mean <= high and mean == pytest.approx(100 * (a.mean() - b.mean()))
        held += low <= 10 <= high
    assert held >= 35


def test_paired_bootstrap_keeps_pairs_together() -> None:
    """Two models that err on the same images: no variance, though each of them has some."""
    correct = np.random.default_rng(0).random(300) < 0.5
    assert paired_bootstrap(correct, correct, draws=50) == (0, 0, 0)


def test_interval_width_is_that_of_the_normal_approximation() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.random(2000) < 0.8, generator.random(2000) < 0.7
    _, low, high = paired_bootstrap(a, b, draws=2000)
    difference = a.astype(float) - b.astype(float)
    assert high - low == pytest.approx(100 * 2 * 1.96 * difference.std() / np.sqrt(2000), rel=0.1)


def batches(sizes: tuple[int, ...]) -> list[Batch]:
    made, start = [], 0
    for seed, size in enumerate(sizes):
        images, targets = harness.tiny_batch(size, seed)
        made.append(Batch(images, targets, torch.arange(start, start + size)))
        start += size
    return made


@pytest.mark.parametrize("training", [True, False])
def test_predict_restores_the_mode_and_takes_no_gradient(training: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(192, 3))
    model.train(training)
    modes: list[bool] = []
    model.register_forward_hook(lambda module, *_: modes.append(module.training))
    made = predict(model, batches((4, 4, 3)), CPU, contextlib.nullcontext)
    assert model.training == training and modes == [False] * 3
    assert not made.logits.requires_grad and made.logits.dtype == torch.float32
    assert made.logits.shape == (11, 3) and made.images_per_second > 0 and made.peak_memory_mb > 10
    model.eval()
    wanted = torch.cat([model(batch.images) for batch in batches((4, 4, 3))])
    torch.testing.assert_close(made.logits, wanted.detach())
    assert torch.equal(made.labels, torch.cat([batch.targets for batch in batches((4, 4, 3))]))


def test_predict_times_a_single_batch() -> None:
    made = predict(harness.tiny_student(), batches((3,)), CPU, contextlib.nullcontext)
    assert made.images_per_second > 0 and len(made.labels) == 3


def test_predict_of_no_batches_is_empty() -> None:
    """A process that has no share of a small split."""
    made = predict(harness.tiny_student(), [], CPU, contextlib.nullcontext)
    assert made.logits.shape == (0, 0) and made.labels.shape == (0,) and made.labels.dtype == torch.int64
    assert made.images_per_second == 0


def test_student_and_teacher_under_one_evaluator() -> None:
    vit = harness.tiny_vit()
    whole = predict(vit, batches((4, 2)), CPU, contextlib.nullcontext)
    view = predict(harness.tiny_teacher(), batches((4, 2)), CPU, contextlib.nullcontext)
    torch.testing.assert_close(whole.logits, view.logits, rtol=1e-4, atol=1e-4)
    assert agreement(whole, view) == 100


def test_hugging_face_outputs_are_unwrapped() -> None:
    from types import SimpleNamespace

    model: Any = lambda images: SimpleNamespace(logits=images + 1)  # noqa: E731
    assert torch.equal(logits_of(model, torch.zeros(2, 3)), torch.ones(2, 3))


def test_summary_names_what_results_hold() -> None:
    summary = summarise(random_predictions(0), 1234)
    names = {"top1", "top5", "ece", "nll", "params", "images_per_second", "peak_memory_mb"}
    assert summary.keys() == names and summary["params"] == 1234
