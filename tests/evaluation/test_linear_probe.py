"""The linear probe against scikit-learn; a split in pieces against the split in one."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from embedding_runners import Embeds, class_batches, filled, tallies_of, unit
from torch import Tensor

from transmamba.core.task import Evaluator, Listing, Outcome, Pass
from transmamba.errors import UserError
from transmamba.evaluation.linear_probe import LinearProbeEvaluator
from transmamba.evaluation.logistic import STRENGTHS, Trial, best_of, fit, try_out
from transmamba.evaluation.run import measure

TRAIN, TEST, CLASSES, WIDTH = 150, 60, 4, 6


def labels_of(seed: int, count: int) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(0, CLASSES, count))


def features_of(seed: int, labels: Tensor, noise: float = 0.6) -> Tensor:
    """Unit vectors around a direction a class."""
    means = unit(99, CLASSES, WIDTH)
    return F.normalize(means[labels] + noise * unit(seed, len(labels), WIDTH), dim=-1)


def split_of(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Labels to fit on and to measure by, and a table whose first rows are those to fit on."""
    train, test = labels_of(seed, TRAIN), labels_of(seed + 1, TEST)
    return train, test, torch.cat([features_of(seed, train), features_of(seed + 1, test)])


def evaluator_of(train: Tensor, test: Tensor, classes: int = CLASSES) -> LinearProbeEvaluator:
    numbers = len(train) + torch.arange(len(test))
    names = [f"class {k}" for k in range(classes)]
    return LinearProbeEvaluator("test", class_batches(train), class_batches(test, numbers), names, filled)


def outcome_of(train: Tensor, test: Tensor, table: Tensor, classes: int = CLASSES) -> Outcome:
    runners = {"student": Embeds(table)}
    return measure([evaluator_of(train, test, classes)], runners, Pass(batch_size=32)).outcomes[0]["student"]


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_fit_is_that_of_scikit_learn(strength: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    labels, _, table = split_of()
    features = table[:TRAIN]
    theirs = linear.LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    theirs.fit(features.double().numpy(), labels.numpy())
    found = fit(features, labels, strength)
    scale = float(np.abs(theirs.coef_).max())
    np.testing.assert_allclose(found.weight.numpy(), theirs.coef_, atol=1e-3 * scale)
    logits = found.logits(table[TRAIN:], CLASSES)
    wanted = theirs.predict_proba(table[TRAIN:].double().numpy())
    np.testing.assert_allclose(logits.softmax(-1).numpy(), wanted, atol=1e-3)


def test_the_gradient_is_zero_where_the_fit_ends() -> None:
    """Without another library: the loss, written out."""
    labels, _, table = split_of(4)
    found = fit(table[:TRAIN], labels, 3.0)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for row, label in zip(table[:TRAIN].double(), labels, strict=True):
        scores = weight @ row + bias
        loss = loss + 3.0 * (scores.exp().sum().log() - scores[label])
    (loss + weight.square().sum() / 2).backward()
    assert weight.grad is not None and bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-4 * 3.0 * TRAIN


def test_metrics_are_those_of_the_chosen_strength() -> None:
    """Written out: a fifth of each class is held out, the best strength fitted again on everything."""
    linear = pytest.importorskip("sklearn.linear_model")
    train, test, table = split_of()
    found = outcome_of(train, test, table)
    listing = found.exhibits[-1]
    assert isinstance(listing, Listing) and listing.title.startswith("Linear probe: strengths C tried on 20%")
    (chosen,) = [float(row[0]) for row in listing.rows if row[3]]
    assert [float(row[0]) for row in listing.rows] == list(STRENGTHS)
    theirs = linear.LogisticRegression(C=chosen, tol=1e-10, max_iter=10_000)
    theirs.fit(table[:TRAIN].double().numpy(), train.numpy())
    answers = theirs.predict(table[TRAIN:].double().numpy())
    right = answers == test.numpy()
    assert found.metrics["probe_top1"] == pytest.approx(100 * right.mean())
    assert found.metrics["probe_per_class"] == pytest.approx(
        100 * np.mean([right[test.numpy() == k].mean() for k in range(CLASSES)])
    )
    assert found.metrics["probe_top5"] == 100
    assert 60 < found.metrics["probe_top1"] < 100
    assert found.index is not None and found.index.tolist() == list(range(TRAIN, TRAIN + TEST))
    for key, items in found.items.items():
        assert items.mean() == pytest.approx(found.metrics[key]), key


def test_the_strength_is_chosen_by_what_was_held_out() -> None:
    """Labels that mean nothing: whoever believes them less is likelier, and none is tried on what it saw."""
    labels = labels_of(7, 200)
    trials = try_out(unit(1, 200, 40), labels)
    assert [trial.strength for trial in trials] == list(STRENGTHS)
    assert all(trial.top1 < 50 for trial in trials)  # 40 numbers tell 160 items apart by heart
    assert trials[0].nll < trials[-1].nll
    assert best_of([Trial(1, 50, 0.7), Trial(10, 60, 0.9), Trial(100, 60, 0.8)]) == 100
    assert best_of([]) == 1


def test_a_class_with_one_item_is_fitted_on() -> None:
    """And one without any is not answered, though it counts as wrong."""
    train = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    test = torch.tensor([0, 1, 2, 3])
    directions = unit(99, CLASSES, WIDTH)
    found = outcome_of(train, test, torch.cat([directions[train], directions[test]]))
    assert found.items["probe_top1"].tolist() == [100, 100, 100, 0]
    alone = outcome_of(torch.arange(3), test, torch.cat([directions[:3], directions[test]]))
    assert alone.items["probe_top1"].tolist() == [100, 100, 100, 0]
    assert "nothing: no class has two items; C is 1" in alone.exhibits[-1].title


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_are_one_process(world: int) -> None:
    train, test, table = split_of(2)
    whole, evaluator = outcome_of(train, test, table), evaluator_of(train, test)
    runners = {"student": Embeds(table)}
    tallies = tallies_of(evaluator, runners, world, batch_size=8)
    batch = next(iter(evaluator.batches(Pass(batch_size=3))))
    evaluator.add(tallies[0], runners, batch)  # once more
    found = evaluator.finish(pickle.loads(pickle.dumps(tallies)))["student"]
    assert found.metrics == whole.metrics
    assert all(np.array_equal(found.items[key], whole.items[key]) for key in whole.items)
    assert found.exhibits[1:] == whole.exhibits[1:]


def test_student_and_teacher() -> None:
    train, test, table = split_of(3)
    other = torch.cat([features_of(8, train, 0.9), features_of(9, test, 0.9)])
    runners = {"student": Embeds(other), "teacher": Embeds(table)}
    measured = measure([evaluator_of(train, test)], runners, Pass(batch_size=32))
    student, teacher = (measured.outcomes[0][name] for name in ("student", "teacher"))
    same = student.answers.answers.predicted == teacher.answers.answers.predicted
    assert measured.agreement() == {"probe_agreement": pytest.approx(100 * same.mean())}
    assert {sample.group for sample in measured.samples(5)} >= {"linear probe: student and teacher differ"}
    first = measured.samples(1)[0]
    assert first.picture is not None and int(first.picture[0, 0, 0]) >= TRAIN
    known = {metric.key for metric in LinearProbeEvaluator.METRICS}
    assert student.metrics.keys() | measured.agreement().keys() == known


def test_embeddings_that_are_not_finite() -> None:
    """To fit on: nothing is known. To measure: that item, and with it the mean, is not."""
    train, test, table = split_of()
    bad: Any = table.clone()
    bad[3, 0] = torch.nan
    assert np.isnan(outcome_of(train, test, bad).items["probe_top1"]).all()
    bad = table.clone()
    bad[TRAIN + 3, 0] = torch.inf
    found = outcome_of(train, test, bad)
    assert np.flatnonzero(np.isnan(found.items["probe_top1"])).tolist() == [3]
    assert np.isnan(found.metrics["probe_top1"])


def test_what_cannot_be_measured() -> None:
    train, test, table = split_of()
    with pytest.raises(UserError, match="the linear probe on test has no training items"):
        outcome_of(train[:0], test, table)
    with pytest.raises(UserError, match="the test split is empty"):
        outcome_of(train, test[:0], table)
    with pytest.raises(UserError, match="student gives no image embeddings"):
        measure([evaluator_of(train, test)], {"student": Embeds()}, Pass(batch_size=32))


def test_it_is_an_evaluator() -> None:
    evaluator = evaluator_of(*split_of()[:2])
    assert isinstance(evaluator, Evaluator) and evaluator.metrics is LinearProbeEvaluator.METRICS
    assert [metric.key for metric in evaluator.metrics if metric.headline] == ["probe_top1"]
