"""A classifier's numbers against brute force and scikit-learn; a split in pieces against the split in one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.core.batch import Batch, image_batch
from transmamba.core.output import Logits
from transmamba.core.task import Evaluator, Listing, Matrix, Outcome, Pass
from transmamba.errors import UserError
from transmamba.evaluation.classification import ClassificationEvaluator, expected_calibration_error
from transmamba.evaluation.run import measure


class Given:
    """A runner that gives prepared logits (N, K), found by the items' numbers."""

    def __init__(self, logits: Tensor) -> None:
        self.made = logits

    def logits(self, batch: Batch) -> Logits:
        return Logits(self.made[batch.index], lambda logits: logits)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError

    def generate(self, batch: Batch, limit: int) -> Tensor:
        raise NotImplementedError


def random_logits(seed: int, labels: Tensor, classes: int = 9) -> Tensor:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 1.5, (len(labels), classes))
    logits[np.arange(len(labels)), labels.numpy()] += 1.5
    return torch.tensor(logits, dtype=torch.float32)


def random_labels(seed: int, count: int = 503, classes: int = 9) -> Tensor:
    return torch.tensor(np.random.default_rng(seed + 100).integers(0, classes, count))


def evaluator_of(labels: Tensor, classes: int = 9, index: Tensor | None = None) -> ClassificationEvaluator:
    """Of items whose number is their place, or `index`; a picture is filled with its number."""
    numbers = torch.arange(len(labels)) if index is None else index

    def batches(passing: Pass) -> Iterator[Batch]:
        mine = torch.arange(len(labels))[passing.rank :: passing.world]
        for part in mine.split(passing.batch_size):
            yield image_batch(torch.zeros(len(part), 1, 2, 2), labels[part], numbers[part])

    def pictures(indices: Any) -> Any:
        return np.broadcast_to(
            np.asarray(indices, dtype=np.uint8)[:, None, None, None], (len(indices), 2, 2, 3)
        )

    return ClassificationEvaluator("test", batches, [f"class {k}" for k in range(classes)], pictures)


def outcome_of(logits: Tensor, labels: Tensor, batch_size: int = 64) -> Outcome:
    evaluator = evaluator_of(labels, logits.shape[1])
    measured = measure([evaluator], {"student": Given(logits)}, Pass(batch_size=batch_size))
    return measured.outcomes[0]["student"]


def brute_force(logits_: Tensor, labels_: Tensor) -> dict[str, float]:
    logits, labels = logits_.double().numpy(), labels_.numpy()
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
    labels = random_labels(seed)
    logits = random_logits(seed, labels)
    assert outcome_of(logits, labels).metrics == pytest.approx(brute_force(logits, labels), rel=1e-6)


def test_metrics_of_the_whole_split_at_once() -> None:
    """Streaming changes no number: torch's own loss of all items, and the percentages to the last bit."""
    labels = random_labels(0)
    logits = random_logits(0, labels)
    found = outcome_of(logits, labels, batch_size=7)
    assert found.metrics["nll"] == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-12)
    assert found.metrics["top1"] == 100 * (logits.argmax(-1) == labels).double().mean().item()
    ranked = logits.topk(5, dim=-1).indices
    assert found.metrics["top5"] == 100 * (ranked == labels[:, None]).any(1).double().mean().item()
    whole = outcome_of(logits, labels, batch_size=1000)
    assert found.metrics == whole.metrics
    for key, items in found.items.items():
        assert np.array_equal(items, whole.items[key])
        assert items.mean() == pytest.approx(found.metrics[key], rel=1e-12), key


def test_against_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels = random_labels(4)
    logits = random_logits(4, labels)
    found = outcome_of(logits, labels).metrics
    assert found["top1"] == pytest.approx(100 * metrics.accuracy_score(labels, logits.argmax(-1)))
    assert found["top5"] == pytest.approx(100 * metrics.top_k_accuracy_score(labels, logits, k=5))
    assert found["nll"] == pytest.approx(metrics.log_loss(labels, logits.double().softmax(-1)), rel=1e-6)


def test_confusions_and_accuracy_by_class_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels = random_labels(5)
    logits = random_logits(5, labels)
    matrix, confusions, by_class = outcome_of(logits, labels).exhibits
    wanted = metrics.confusion_matrix(labels, logits.argmax(-1))
    assert isinstance(matrix, Matrix) and isinstance(confusions, Listing) and isinstance(by_class, Listing)
    np.testing.assert_allclose(matrix.values, 100 * wanted / wanted.sum(1, keepdims=True))
    recall = metrics.recall_score(labels, logits.argmax(-1), average=None)
    assert {name: share for name, _, share in by_class.rows} == {
        f"class {k}": f"{100 * value:.2f}" for k, value in enumerate(recall)
    }
    shares = [float(share) for _, _, share in by_class.rows]
    assert shares == sorted(shares)
    counts = [int(images) for _, _, images in confusions.rows]
    off = wanted - np.diag(np.diag(wanted))
    assert counts == sorted(off.ravel(), reverse=True)[: len(counts)]
    label, answer, images = (confusions.rows[0][0][-1], confusions.rows[0][1][-1], counts[0])
    assert off[int(label), int(answer)] == images


def test_fewer_than_five_classes() -> None:
    labels = random_labels(0, classes=3)
    assert outcome_of(random_logits(0, labels, classes=3), labels).metrics["top5"] == 100.0


def test_equal_logits_are_judged_as_argmax_judges_them() -> None:
    logits = torch.zeros(3, 1000)
    labels = logits.argmax(-1) + torch.tensor([0, 1, 2])
    assert outcome_of(logits, labels).items["top1"].tolist() == [100, 0, 0]


def test_calibration_of_the_certain() -> None:
    """Certain and right: 0. Certain and wrong: 1. Certain and right half of the time: 1/2."""
    certain = np.ones(4)
    assert expected_calibration_error(certain, np.ones(4)) == 0
    assert expected_calibration_error(certain, np.zeros(4)) == pytest.approx(1)
    assert expected_calibration_error(certain, np.array([1.0, 0, 1, 0])) == pytest.approx(0.5)


def test_agreement() -> None:
    labels = random_labels(0)
    a, b = random_logits(0, labels), random_logits(1, labels)
    runners = {"student": Given(a), "teacher": Given(b)}
    measured = measure([evaluator_of(labels)], runners, Pass(batch_size=50))
    wanted = np.mean(a.numpy().argmax(1) == b.numpy().argmax(1))
    assert measured.agreement() == {"agreement": pytest.approx(100 * wanted)}
    (found,) = measured.outcomes
    assert measured.evaluators[0].compare(found["student"], found["student"]) == {"agreement": 100.0}
    assert set(measured.results()) == {"student", "teacher", "agreement", "difference"}


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_together_are_one_process(world: int) -> None:
    """Two of the seven processes have no share of the five last batches; one item is given to two of them."""
    labels = random_labels(2, 5 if world == 7 else 101)
    logits = random_logits(2, labels)
    evaluator, whole = evaluator_of(labels), outcome_of(logits, labels, batch_size=8)
    tallies = []
    for rank in range(world):
        tally = evaluator.start()
        for batch in evaluator.batches(Pass(batch_size=8, rank=rank, world=world)):
            evaluator.add(tally, {"student": Given(logits)}, batch)
        tallies.append(tally)
    evaluator.add(tallies[1], {"student": Given(logits)}, image_batch(torch.zeros(1, 1, 2, 2), labels[:1]))
    found = evaluator.finish(tallies)["student"]
    assert found.index is not None and found.index.tolist() == list(range(len(labels)))
    assert found.metrics == whole.metrics
    assert all(np.array_equal(found.items[key], whole.items[key]) for key in whole.items)
    assert found.exhibits[1] == whole.exhibits[1] and found.exhibits[2] == whole.exhibits[2]


def test_an_empty_split_is_said() -> None:
    evaluator = evaluator_of(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match="the test split is empty"):
        measure([evaluator], {"student": Given(torch.zeros(0, 9))}, Pass(batch_size=4))


def test_samples_are_of_many_classes_and_of_each_group() -> None:
    """The split is in the order of its classes, as test sets are; a student and a teacher that sometimes
    err."""
    classes, each = 10, 50
    labels = torch.arange(classes).repeat_interleave(each)
    student, teacher = random_logits(0, labels, classes), random_logits(1, labels, classes)
    evaluator = evaluator_of(labels, classes)
    runners = {"student": Given(student), "teacher": Given(teacher)}
    measured = measure([evaluator], runners, Pass(batch_size=32))
    samples = measured.samples(24)
    assert len(samples) == 24 and len({sample.label for sample in samples}) == classes
    groups = [sample.group for sample in samples]
    titles = ["student and teacher differ", "both wrong", "both right"]
    assert groups == sorted(groups, key=titles.index) and groups.count(titles[0]) == 12
    for sample in samples:
        said = {answer.who: answer for answer in sample.answers}
        assert list(said) == ["student", "teacher"]
        assert all(answer.right == (answer.text == sample.label) for answer in sample.answers)
        assert (said["student"].text != said["teacher"].text) == (sample.group == titles[0])
        assert sample.picture is not None and sample.picture.shape == (2, 2, 3)
    again = measured.samples(24)
    assert [(s.group, s.label, s.answers) for s in again] == [(s.group, s.label, s.answers) for s in samples]


def test_samples_show_the_picture_of_their_item() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    numbers = torch.tensor([40, 30, 20, 10])  # not in the order of the split

    class ByLabel(Given):
        def logits(self, batch: Batch) -> Logits:
            return Logits(F.one_hot(batch.targets["classes"], 9).float(), lambda logits: logits)

    evaluator = evaluator_of(labels, index=numbers)
    measured = measure([evaluator], {"student": ByLabel(torch.zeros(0))}, Pass(batch_size=3))
    shown = {sample.label: int(sample.picture[0, 0, 0]) for sample in measured.samples(4)}  # type: ignore[index]
    assert shown == {"class 0": 40, "class 1": 30, "class 2": 20, "class 3": 10}
    assert {sample.group for sample in measured.samples(4)} == {"student right"}


def test_more_classes_than_samples_are_spread() -> None:
    classes = 100
    labels = torch.arange(classes).repeat_interleave(3)
    measured = measure(
        [evaluator_of(labels, classes)],
        {"student": Given(F.one_hot(labels, classes).float())},
        Pass(batch_size=64),
    )
    shown = [int(sample.label.split()[1]) for sample in measured.samples(10)]
    assert len(set(shown)) == 10 and min(shown) < 10 and max(shown) > 90


def test_it_is_an_evaluator() -> None:
    evaluator = evaluator_of(torch.zeros(3, dtype=torch.int64))
    assert isinstance(evaluator, Evaluator)
    assert evaluator.metrics is ClassificationEvaluator.METRICS
    assert [metric.key for metric in evaluator.metrics if metric.headline] == ["top1"]
