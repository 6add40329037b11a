"""Models as evaluators use them: mode, precision, cost, what is not finite; and the pass over a split."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transmamba.core.batch import Batch, image_batch
from transmamba.core.output import Logits, Output
from transmamba.core.task import Metric, Outcome, Pass, Runner, Sample
from transmamba.errors import UserError
from transmamba.evaluation import cost
from transmamba.evaluation.classification import ClassificationEvaluator
from transmamba.evaluation.run import ModelRunner, measure

CPU = torch.device("cpu")


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))


def batches(sizes: Sequence[int]) -> list[Batch]:
    made, start = [], 0
    for size in sizes:
        images = torch.randn(size, 3, 2, 2, generator=torch.Generator().manual_seed(start))
        index = torch.arange(start, start + size)
        made.append(image_batch(images, index % 3, index))
        start += size
    return made


def evaluator_of(sizes: Sequence[int]) -> ClassificationEvaluator:
    return ClassificationEvaluator("test", lambda passing: iter(batches(sizes)), "abc", lambda indices: None)  # type: ignore


class Student(nn.Module):
    """Embeds and classifies; the head is applied when it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 4), nn.Linear(4, 3)

    def run(self, inputs: Mapping[str, Tensor], captures: Mapping[str, Any]) -> Output:
        assert not captures
        hidden = self.body(inputs["image"].flatten(1))
        return Output(logits=Logits(hidden, self.head), embeddings={"image": hidden})


class Teacher:
    num_params = 77

    def __init__(self, student: Student) -> None:
        self.student = student

    def __call__(self, inputs: Mapping[str, Tensor], captures: Mapping[str, Any]) -> Output:
        return self.student.run(inputs, captures)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_and_no_gradient_taken(training: bool) -> None:
    model = classifier()
    model.train(training)
    model[1].eval()  # type: ignore[index]  # a part that rests while the others are trained
    modes: list[bool] = []
    model.register_forward_hook(lambda module, *_: modes.append(any(m.training for m in module.modules())))
    measured = measure([evaluator_of((4, 4, 3))], {"student": ModelRunner(model, CPU)}, Pass(batch_size=4))
    assert modes == [False] * 3
    assert [m.training for m in model.modules()] == [training, training, False, training]
    assert measured.outcomes[0]["student"].index is not None
    logits = ModelRunner(model, CPU).logits(batches((4,))[0])()
    assert not logits.requires_grad and model.training == training


def test_logits_are_the_models_own() -> None:
    model = classifier().eval()
    (batch,) = batches((5,))
    wanted = model(batch.inputs["image"])
    torch.testing.assert_close(ModelRunner(model, CPU).logits(batch)(), wanted)

    class Wrapped(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return SimpleNamespace(logits=model(images))

    torch.testing.assert_close(ModelRunner(Wrapped(), CPU).logits(batch)(), wanted)


def test_students_and_teachers_are_asked_for_what_they_make() -> None:
    student = Student()
    (batch,) = batches((5,))
    wanted = student.run(batch.inputs, {})
    assert wanted.logits is not None
    for runner in (ModelRunner(student, CPU), ModelRunner(Teacher(student), CPU, kind="teacher")):
        logits = runner.logits(batch)
        torch.testing.assert_close(logits(), wanted.logits())
        rows = torch.cat([part for _, part in runner.logits(batch).chunks(2)])
        torch.testing.assert_close(rows, wanted.logits())
        assert not rows.requires_grad
        torch.testing.assert_close(runner.embed(batch), wanted.embeddings)
    assert ModelRunner(student, CPU).num_params == 12 * 4 + 4 + 4 * 3 + 3
    assert ModelRunner(Teacher(student), CPU, kind="teacher").num_params == 77


def test_what_a_model_lacks_is_said() -> None:
    class Mute(Student):
        def run(self, inputs: Mapping[str, Tensor], captures: Mapping[str, Any]) -> Output:
            return Output()

    (batch,) = batches((2,))
    with pytest.raises(UserError, match="Mute gives no logits"):
        ModelRunner(Mute(), CPU).logits(batch)
    with pytest.raises(UserError, match="Mute cannot generate"):
        ModelRunner(Mute(), CPU).generate(batch, 3)


def test_the_head_computes_in_the_runs_precision() -> None:
    runner = ModelRunner(Student(), CPU, lambda: cost.autocast(CPU, "bf16"))
    logits = runner.logits(batches((4,))[0])
    assert logits.hidden.dtype == torch.bfloat16 and logits().dtype == torch.bfloat16
    assert (
        ModelRunner(Student(), CPU, lambda: cost.autocast(CPU, "no")).logits(batches((4,))[0])().dtype
        == torch.float32
    )


# --- cost ---


class Watch:
    """A clock that a model moves by itself: `seconds` a forward pass, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Sequence[float]) -> None:
        self.now, self.seconds, self.passes = 0.0, iter(seconds), 0
        monkeypatch.setattr(cost.time, "perf_counter", lambda: self.now)

    def model(self) -> nn.Module:
        watch = self

        class Slow(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                watch.now += next(watch.seconds)
                watch.passes += 1
                return torch.zeros(len(images), 3)

        return Slow()


@pytest.mark.parametrize(
    ("sizes", "seconds", "rate", "passes"),
    [
        ((4, 4, 4, 3), (100, 1, 3, 50), 8 / 4, 4),  # not the slow first, not the short last
        ((4, 3), (100, 50, 2), 4 / 2, 3),  # the first again
        ((4,), (100, 2), 4 / 2, 2),
    ],
)
def test_the_clock_counts_full_batches_without_the_first(
    monkeypatch: pytest.MonkeyPatch, sizes: Sequence[int], seconds: Sequence[float], rate: float, passes: int
) -> None:
    watch = Watch(monkeypatch, seconds)
    measured = measure(
        [evaluator_of(sizes)], {"student": ModelRunner(watch.model(), CPU)}, Pass(batch_size=4)
    )
    assert measured.costs["student"].samples_per_second == pytest.approx(rate) and watch.passes == passes


def test_two_models_do_not_pay_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, (9, 9, 1, 4, 1, 4))
    runners = {name: ModelRunner(watch.model(), CPU) for name in ("student", "teacher")}
    costs = measure([evaluator_of((4, 4, 4))], runners, Pass(batch_size=4)).costs
    assert costs["student"].samples_per_second == 4 and costs["teacher"].samples_per_second == 1


def test_results_name_what_tables_show() -> None:
    runners: dict[str, Runner] = {
        "student": ModelRunner(classifier(), CPU),
        "teacher": ModelRunner(Teacher(Student()), CPU, kind="teacher"),
    }
    results = measure([evaluator_of((4, 4))], runners, Pass(batch_size=4)).results()
    names = {"top1", "top5", "ece", "nll", "params", "samples_per_second", "peak_memory_mb"}
    assert results["student"].keys() == results["teacher"].keys() == names
    assert results["student"]["params"] == 12 * 3 + 3 and results["teacher"]["params"] == 77
    assert results["student"]["samples_per_second"] > 0 and results["student"]["peak_memory_mb"] > 10
    assert results["agreement"].keys() == {"agreement"}


def test_rates_of_processes_add_up_and_the_hungriest_counts() -> None:
    mine, other = cost.Cost(10.0, 300.0), cost.Cost(5.0, 500.0)
    assert cost.Cost.of_all([mine, other]) == cost.Cost(15.0, 500.0)
    assert cost.Cost.of_all([cost.Cost(), mine]).samples_per_second == 10  # a process without a share


def test_a_second_measurement_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch, (100, 1, 1, 2))
    runner = ModelRunner(watch.model(), CPU)
    for wanted in (4, 2):
        measured = measure([evaluator_of((4, 4))], {"student": runner}, Pass(batch_size=4))
        assert measured.costs["student"].samples_per_second == wanted


# --- not finite ---


class Broken(nn.Module):
    """Gives what is no number for the item 6."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.ones(len(images), 3)
        if len(images) == 3:
            logits[2, 1] = torch.inf
        return logits


def test_logits_that_are_not_finite_are_refused_by_name() -> None:
    runners = {"teacher": ModelRunner(classifier(), CPU), "student": ModelRunner(Broken(), CPU)}
    with pytest.raises(UserError) as caught:
        measure([evaluator_of((4, 3, 2))], runners, Pass(batch_size=4))
    text = str(caught.value)
    assert text.startswith("student: logits are not finite in batch 2 (items 4 to 6) of the test split")
    assert "\n" not in text


def test_while_training_they_are_said_and_the_metrics_are_nan() -> None:
    said: list[str] = []
    runners = {"student": ModelRunner(Broken(), CPU), "teacher": ModelRunner(classifier(), CPU)}
    measured = measure([evaluator_of((4, 3, 2))], runners, Pass(batch_size=4), say=said.append)
    assert len(said) == 1 and said[0].startswith("student: logits are not finite in batch 2")
    assert all(value != value for value in measured.metrics("student").values())
    assert all(value == value for value in measured.metrics("teacher").values())
    assert measured.agreement()["agreement"] != measured.agreement()["agreement"]


def test_all_processes_refuse_together() -> None:
    """Another process's model fails: this one hears of it where they gather, and does not wait for ever."""
    gathered: list[Any] = []

    def gather(mine: Any) -> list[Any]:
        gathered.append(mine)
        tally, troubles = mine
        assert not troubles
        return [mine, (tally, {"student": "logits are not finite in batch 9 (items 1 to 2)"})]

    runners = {"student": ModelRunner(classifier(), CPU)}
    with pytest.raises(UserError, match="student: logits are not finite in batch 9"):
        measure([evaluator_of((4, 4))], runners, Pass(batch_size=4, world=2), gather)
    assert len(gathered) == 1


# --- any evaluator ---


class Length:
    """How large inputs are on average: an evaluator that needs no model to be right."""

    split = "test"
    metrics = (Metric(key="length", label="length"),)

    def batches(self, passing: Pass) -> Iterator[Batch]:
        return iter(batches((4, 2)))

    def start(self) -> list[int]:
        return []

    def add(self, tally: list[int], runners: Mapping[str, Runner], batch: Batch) -> None:
        for runner in runners.values():
            tally += [len(runner.embed(batch)["image"])]

    def finish(self, tallies: Sequence[list[int]]) -> dict[str, Outcome]:
        return {"student": Outcome({"length": float(sum(sum(tally) for tally in tallies))})}

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        return {}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        return [Sample("long", ())][:count]


def test_several_evaluators_share_the_models_and_the_results() -> None:
    watched: list[str] = []

    def watch(items: Iterator[Batch], title: str) -> Iterator[Batch]:
        watched.append(title)
        return items

    runners = {"student": ModelRunner(Student(), CPU)}
    evaluators = [evaluator_of((4, 4)), Length()]
    measured = measure(evaluators, runners, Pass(batch_size=4), lambda mine: [mine, mine], watch=watch)
    assert measured.metrics("student")["length"] == 12 and "top1" in measured.metrics("student")
    assert "agreement" not in measured.results() and watched == ["evaluating on test"] * 2
    with pytest.raises(AssertionError, match="two evaluators call a metric length"):
        measure([Length(), Length()], runners, Pass(batch_size=4)).results()


def test_autocast_knows_its_precisions() -> None:
    assert isinstance(cost.autocast(CPU, "no"), contextlib.nullcontext)
    with cost.autocast(CPU, "bf16"):
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16
    assert dict(cost.HALF) == {"bf16": torch.bfloat16, "fp16": torch.float16}
