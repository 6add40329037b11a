"""A run continued on another number of processes is the one that a single process makes without a pause."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import harness
import pytest

from transmamba.runs.recipe import Recipe

LAST = 5  # the checkpoint that is continued: two steps of the second stage are in it
DRAWS = dict(student__kwargs=dict(harness.SHALLOW, drop_path_rate=0.3), task__mixup=0.5)
NO_DRAWS = dict(student__kwargs=dict(harness.SHALLOW))


def recipe_of(folder: Path, name: str, micro_batch: int | None = 2, **changes: Any) -> Recipe:
    """Adaptive weights, a loss with nets of its own, drawn tokens; steps that 1, 2 and 3 processes divide."""
    stages = [
        dict(name="align", losses=["mixer"], steps=3, lr=3e-3),
        dict(
            name="distill",
            losses=["kl", "cab", "bidirectional", dict(name="feature", weighting="adaptive")],
            steps=5,
            lr=3e-3,
            token_fraction=0.6,
        ),
    ]
    trainer = dict(global_batch=12, save_every=2, log_every=1, eval_every=3, eval_batch_size=4)
    trainer |= dict(micro_batch=micro_batch)
    return harness.tiny_recipe(
        folder, output_dir=str(folder / name), stages=stages, trainer=trainer, **changes
    )


def cut(environment: dict[str, str], recipe: Recipe, number: signal.Signals) -> None:
    """Sends itself a signal in the last step before it saves, or, of SIGKILL, in the first one after."""
    os.environ.update(environment)
    harness.signalled(recipe, number, LAST if number == signal.SIGKILL else LAST - 1)


def continued(environment: dict[str, str], recipe: Recipe) -> None:
    """Runs to the end; what it said is in RUN/said."""
    import transmamba.reporting.tracking

    def say(self: Any, text: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            with (Path(recipe.output_dir) / "said").open("a") as file:
                file.write(f"{text}\n")

    transmamba.reporting.tracking.Tracker.say = say  # type: ignore[method-assign]
    os.environ.update(environment)
    harness.run_quietly(recipe)


def launch(processes: int, environment: dict[str, str], target: Any, *arguments: Any) -> list[Any]:
    """The processes of a launch; one without a strategy is started as by hand."""
    if processes == 1 and not environment:
        return [harness.start(target, environment, *arguments)]
    return harness.start_ranks(processes, target, environment, *arguments)


def cut_and_continue(
    environment: dict[str, str],
    counts: tuple[int, int],
    recipe: Recipe,
    number: signal.Signals = signal.SIGTERM,
) -> str:
    """A run cut on so many processes, and continued on so many: the line that says so."""
    run = Path(recipe.output_dir)
    ranks = launch(counts[0], environment, cut, recipe, number)
    if number == signal.SIGKILL:
        for process in ranks:
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
    else:
        harness.finish(*ranks)
    assert max((run / "checkpoints").iterdir()).name == f"step-{LAST:08d}"
    harness.finish(*launch(counts[1], environment, continued, recipe))
    newest = json.loads((max((run / "checkpoints").iterdir()) / "progress.json").read_text())
    assert newest["step"] == 8 and newest["processes"] == counts[1]
    (line,) = [line for line in (run / "said").read_text().splitlines() if line.startswith("continued on")]
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the uninterrupted runs of one process: `whole`, and `still`, which draws nothing."""
    folder = tmp_path_factory.mktemp("continued")
    for name, changes in (("whole", DRAWS), ("still", NO_DRAWS)):
        harness.finish(harness.start(harness.run_quietly, recipe_of(folder, name, **changes)))
    return folder


@pytest.mark.slow  # FSDP2's run is the longer way of the same
@pytest.mark.parametrize(
    ("counts", "number"), [((1, 2), signal.SIGKILL), ((1, 2), signal.SIGTERM), ((2, 1), signal.SIGKILL)]
)
def test_ddp(folder: Path, counts: tuple[int, int], number: signal.Signals) -> None:
    """Stopped or killed; two that are stopped and continued by one are resumed below. Stochastic depth and
    mixing are drawn by a micro-batch's place in the step."""
    recipe = recipe_of(folder, f"ddp-{counts}-{number.name}", **DRAWS)
    line = cut_and_continue({}, counts, recipe, number)
    harness.assert_near(Path(recipe.output_dir), folder / "whole")
    one, two = (f"{count} process{'es' * (count > 1)}" for count in counts)
    assert line.startswith(f"continued on {two}, before on {one}: steps have the same items and draws")


def test_fsdp2(folder: Path) -> None:
    """Where a new piece is of two old ones, and where a process has none of a weight."""
    recipe = recipe_of(folder, "fsdp2", **DRAWS)
    cut_and_continue(harness.FSDP2, (3, 2), recipe)
    harness.assert_near(Path(recipe.output_dir), folder / "whole")


def test_a_micro_batch_that_is_left_out(folder: Path) -> None:
    """Is the process's share, of fewer processes a larger one: said, for draws are by micro-batch."""
    recipe = recipe_of(folder, "shares", micro_batch=None, **NO_DRAWS)
    line = cut_and_continue({}, (2, 1), recipe)
    harness.assert_near(Path(recipe.output_dir), folder / "still")
    assert "1 process with 12 items at a time, before on 2 processes with 6: " in line
    assert "dropout and mixing draw otherwise" in line


@pytest.mark.parametrize(
    "environment", [{}, pytest.param(harness.FSDP2, marks=pytest.mark.slow)], ids=["plain", "fsdp2"]
)
def test_then_resumed_as_it_was_continued_is_exact(folder: Path, environment: dict[str, str]) -> None:
    """Two processes continued by one; then saved and resumed by one: to the last bit, and nothing is said."""
    recipe = recipe_of(folder, f"exact{len(environment)}", **DRAWS)
    run = Path(recipe.output_dir)
    line = cut_and_continue(environment, (2, 1), recipe)
    harness.assert_near(run, folder / "whole")
    assert line.startswith(
        "continued on 1 process, before on 2 processes: steps have the same items and draws"
    )
    student, rows = (run / "student/model.safetensors").read_bytes(), harness.metrics_rows(run)
    shutil.rmtree(max((run / "checkpoints").iterdir()))
    (run / "results.json").unlink()
    (run / "said").unlink()
    harness.finish(*launch(1, environment, continued, recipe))
    said = (run / "said").read_text()
    assert "at step 7 of 8" in said and "continued on" not in said
    assert (run / "student/model.safetensors").read_bytes() == student
    assert harness.metrics_rows(run) == rows
