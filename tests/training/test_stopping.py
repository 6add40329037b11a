"""A run that is asked to stop: by a signal, by an event from another thread; saved first, taken up again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from transmamba.config.registry import LOSSES
from transmamba.core.batch import Batch
from transmamba.distillation.distiller import Distiller
from transmamba.reporting.tracking import Tracker, read_metrics
from transmamba.training.checkpoint import list_checkpoints, read_progress
from transmamba.training.interrupted import Interrupted
from transmamba.training.stage import Stage, TrainerConfig
from transmamba.training.trainer import Trainer

STEPS = 6
STAGE = Stage(losses=(LOSSES["cross_entropy"](), LOSSES["feature"](weighting="adaptive")), steps=STEPS)


def train(
    folder: Path,
    ask: Callable[[int, threading.Event], None] = lambda *_: None,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """A run, resumed where there is a checkpoint; `ask` sees every step before it is taken. The weights."""
    stop = threading.Event()

    def batches(start: int, steps: int, stage: int) -> Iterator[Batch]:
        for step in range(start, steps):
            ask(step, stop)
            yield harness.tiny_batch(4, seed=step)

    config = TrainerConfig(**({"global_batch": 4, "log_every": 2, "save_every": 0} | options))
    with Tracker(folder, quiet=True) as tracker:
        trainer = Trainer(
            Accelerator(cpu=True),
            config,
            folder,
            tracker,
            batches=batches,
            change=lambda batch, *_: batch,
            evaluate=evaluate,
            seed=3,
            stop=stop,
        )
        trainer.resume()
        model = Distiller(harness.tiny_student(), harness.tiny_teacher(), STAGE.losses)
        trainer.run(lambda _: model, [(STAGE, STEPS)])
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[Any]]:
    """Weights and log of a run that nobody asked anything."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(folder), harness.metrics_rows(folder)


def resumes(folder: Path, undisturbed: tuple[dict[str, Tensor], list[Any]], **options: Any) -> None:
    """Bit for bit."""
    weights, rows = undisturbed
    found = train(folder, **options)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert harness.metrics_rows(folder) == rows


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_after_its_step(
    number: signal.Signals, code: int, tmp_path: Path, undisturbed: Any
) -> None:
    def ask(step: int, _: threading.Event) -> None:
        if step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=number.name) as caught:
        train(tmp_path, ask)
    assert caught.value.code == code
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert read_progress(saved).step == 3, "the step that it came in is taken"
    resumes(tmp_path, undisturbed)


def test_ctrl_c_twice_does_not_wait(tmp_path: Path) -> None:
    def ask(step: int, _: threading.Event) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, ask)
    assert not list_checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_handlers_are_given_back(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)

    def ask(step: int, stop: threading.Event) -> None:
        assert signal.getsignal(number) is not before
        if step == 1:
            stop.set()

    with pytest.raises(Interrupted):
        train(tmp_path, ask)
    assert signal.getsignal(number) is before


def test_another_thread_trains_and_is_stopped_by_its_event(tmp_path: Path, undisturbed: Any) -> None:
    """Signals belong to the main thread: their handlers are not touched."""
    raised: list[BaseException] = []
    before = signal.getsignal(signal.SIGTERM)

    def ask(step: int, stop: threading.Event) -> None:
        assert threading.current_thread() is not threading.main_thread()
        assert signal.getsignal(signal.SIGTERM) is before
        if step == 3:
            stop.set()

    def work() -> None:
        try:
            train(tmp_path, ask)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in raised] == [Interrupted], raised
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert read_progress(saved).step == 4
    resumes(tmp_path, undisturbed)


def test_saved_before_it_is_evaluated(tmp_path: Path) -> None:
    """An evaluation that fails costs no step: taken up again, the run evaluates what it had saved."""
    seen: list[float] = []

    def evaluate(student: Any) -> dict[str, float]:
        seen.append(float(student.head.weight.detach().sum()))
        if len(seen) == 1:
            raise OSError("an image cannot be read")
        return {"top1": len(seen)}

    with pytest.raises(OSError, match="cannot be read"):
        train(tmp_path, evaluate=evaluate, eval_every=4)
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert read_progress(saved).step == 4 and read_progress(saved).evaluating
    train(tmp_path, evaluate=evaluate, eval_every=4)
    assert seen[1] == seen[0], "the same weights"
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "eval/top1" in row]
    assert [(row["step"], row["eval/top1"]) for row in rows] == [(4, 2), (6, 3)]
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    assert read_progress(last).step == 6 and read_progress(last).evaluating


def test_the_newest_checkpoint_is_damaged(tmp_path: Path, undisturbed: Any) -> None:
    """The run goes on from the one before it, saves the same steps again, and ends where it would have; the
    damaged one is set aside, or the new one could not take its name."""

    def ask(step: int, stop: threading.Event) -> None:
        if step == 3:
            stop.set()

    with pytest.raises(Interrupted):
        train(tmp_path, ask, save_every=2)
    older, newest = list_checkpoints(tmp_path / "checkpoints")
    assert (read_progress(older).step, read_progress(newest).step) == (2, 4)
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    resumes(tmp_path, undisturbed, save_every=2)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["damaged-step-00000004", "step-00000004", "step-00000006"]


@pytest.mark.parametrize("by", ["signal", "event"])
def test_asked_during_the_last_evaluation(by: str, tmp_path: Path) -> None:
    """No step follows that could notice; what comes after the training would go on as if nobody had asked."""
    events: list[threading.Event] = []
    asked: list[bool] = []
    ended: list[bool] = []

    def evaluate(_: Any) -> dict[str, float]:
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT) if by == "signal" else events[0].set()
        ended.append(True)
        return {"top1": 1.0}

    with pytest.raises(Interrupted) as caught:
        train(tmp_path, lambda _, stop: events.append(stop), evaluate=evaluate)
    assert caught.value.code == (130 if by == "signal" else 0)
    assert bool(ended) == (by == "event"), "what was saved before it need not wait for its end"
    train(tmp_path, evaluate=evaluate)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "eval/top1" in row]
    assert [row["step"] for row in rows] == [STEPS], "evaluated again, and logged once"


@pytest.mark.parametrize("by", ["signal", "event"])
def test_asked_during_an_evaluation_where_nothing_is_saved(by: str, tmp_path: Path, undisturbed: Any) -> None:
    """It is saved after the step that follows; where none does, the run is over rather than lost."""
    events: list[threading.Event] = []
    count: list[bool] = []

    def evaluate(_: Any) -> dict[str, float]:
        count.append(True)
        if len(count) in (1, 3):
            os.kill(os.getpid(), signal.SIGINT) if by == "signal" else events[-1].set()
        return {"top1": 1.0}

    options: Any = dict(evaluate=evaluate, eval_every=3, save_every=None)
    with pytest.raises(Interrupted):
        train(tmp_path, lambda _, stop: events.append(stop), **options)
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert read_progress(saved).step == 4 and len(count) == 1
    train(tmp_path, lambda _, stop: events.append(stop), **options)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "eval/top1" in row]
    assert [row["step"] for row in rows] == [3, STEPS]
