"""Two processes over gloo are one process with twice the batch."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file

from transmamba.runs.recipe import Recipe


def recipe_of(folder: Path, name: str, batch: int, **changes: Any) -> Recipe:
    """No stochastic depth, whose draws belong to a micro-batch; 11 test images, not divisible by 2."""
    changes = dict(student__kwargs=dict(harness.VIM), trainer__micro_batch=batch) | changes
    return harness.tiny_recipe(folder, output_dir=str(folder / name), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`: one process, 4 images a micro-batch; `two`: two with 2 each. Both finished."""
    folder = tmp_path_factory.mktemp("processes")
    harness.finish(harness.start(harness.run_quietly, recipe_of(folder, "one", 4)))
    harness.in_ranks(2, count_writes, recipe_of(folder, "two", 2), folder)
    return folder


def count_writes(recipe: Recipe, folder: Path) -> None:
    """Runs; each rank notes what it wrote and what it was given back."""
    import transmamba.runs.run

    real, written = transmamba.runs.run.leave, []

    def leave(*arguments: Any) -> Any:
        written.append(1)
        return real(*arguments)

    transmamba.runs.run.leave = leave
    results = harness.run_quietly(recipe)
    note = {"written": len(written), "results": harness.without_timing(results)}
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(note))


def near(a: Any, b: Any) -> None:
    """Equal but for rounding, which five digits cover after thirteen steps."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            near(a[key], b[key])
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=2e-3, abs=1e-4)
    else:
        assert a == b


def test_the_same_losses(folder: Path) -> None:
    one, two = harness.metrics_rows(folder / "one"), harness.metrics_rows(folder / "two")
    assert len(one) == len(two)
    for ours, theirs in zip(two, one, strict=True):
        near(ours, theirs)


def test_the_same_student(folder: Path) -> None:
    one, two = (load_file(folder / name / "student/model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    gap = sum((one[name] - two[name]).square().sum() for name in one)
    assert float((gap / sum(weight.square().sum() for weight in one.values())).sqrt()) < 1e-4


def test_the_full_method_on_two_processes(folder: Path) -> None:
    """Averages and statistics are those of one process: both ranks look at the same calibration images."""
    changes = dict(harness.FULL_METHOD)
    harness.finish(harness.start(harness.run_quietly, recipe_of(folder, "full_one", 4, **changes)))
    harness.in_ranks(2, harness.run_quietly, recipe_of(folder, "full_two", 2, **changes))
    one, two = (load_file(folder / name / "student/model.safetensors") for name in ("full_one", "full_two"))
    gap = sum((one[name] - two[name]).square().sum() for name in one)
    assert float((gap / sum(weight.square().sum() for weight in one.values())).sqrt()) < 1e-4


def test_the_same_results_written_once(folder: Path) -> None:
    """The test images of both ranks come together in order, each once."""
    notes = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [note["written"] for note in notes] == [1, 0]
    assert notes[0]["results"] == notes[1]["results"]
    one, two = (
        harness.without_timing(json.loads((folder / name / "results.json").read_text()))
        for name in ("one", "two")
    )
    near(one, two)
    assert two == notes[0]["results"]


def test_stopped_and_resumed(folder: Path) -> None:
    """SIGTERM reaches rank 1 alone: both stop at the same step. Bit for bit again, with as many processes."""
    recipe = recipe_of(folder, "stopped", 2)
    harness.in_ranks(2, harness.signalled, recipe, signal.SIGTERM, 6, 1)
    saved = folder / "stopped/checkpoints/step-00000007"
    assert {path.name for path in saved.iterdir()} >= {"random_states_0.pkl", "random_states_1.pkl"}
    harness.in_ranks(2, harness.run_quietly, recipe)
    ours, theirs = (load_file(folder / name / "student/model.safetensors") for name in ("stopped", "two"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert harness.metrics_rows(folder / "stopped") == harness.metrics_rows(folder / "two")
    shutil.rmtree(folder / "stopped")


def test_stages_that_leave_parameters_without_a_gradient(folder: Path) -> None:
    """DDP waits for every gradient unless it is told which will not come; each stage is prepared anew."""
    stages = [
        dict(losses=["mixer"], trainable="all"),
        dict(losses=["mixer", "kl"], trainable="auto"),
        dict(losses=["feature"], trainable="auto"),
        dict(losses=["cab"], trainable="mixers"),
        dict(losses=["cross_entropy"], trainable="mixers"),
        dict(losses=["bidirectional", "mixer"], trainable="auto"),
    ]
    stages = [dict(stage, name=f"stage {i}", steps=2) for i, stage in enumerate(stages)]
    trainer = dict(global_batch=8, micro_batch=2, eval_batch_size=8, log_every=1)
    recipe = recipe_of(folder, "stages", 2, stages=stages, trainer=trainer)
    harness.in_ranks(2, harness.run_quietly, recipe)
    rows = [row for row in harness.metrics_rows(folder / "stages") if "loss" in row]
    assert [row["stage_name"] for row in rows] == [f"stage {i}" for i in range(6) for _ in range(2)]
