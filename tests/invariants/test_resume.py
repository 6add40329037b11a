"""Invariant 5: killed at any instant and resumed equals uninterrupted, bit for bit on the CPU."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file

import transmamba.runs.pipeline
import transmamba.runs.run
import transmamba.training.checkpoint
from transmamba.runs.recipe import Recipe

STAGES = (5, 8)
SAVED = [3, 5, 8, 11, 13]  # every third step of a stage, and its end


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, and of the teacher."""
    folder = tmp_path_factory.mktemp("whole")
    harness.finish(harness.start(harness.run_quietly, harness.tiny_recipe(folder)))
    return folder


@pytest.fixture(scope="module")
def second(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The same run into another folder, and the seconds that it took: the forkserver has imported by then."""
    run, begins = tmp_path_factory.mktemp("second") / "run", time.monotonic()
    harness.finish(harness.start(harness.run_quietly, again(whole, run)))
    return run, time.monotonic() - begins


@pytest.fixture
def recipe(whole: Path, tmp_path: Path) -> Recipe:
    """The same run into another folder."""
    return again(whole, tmp_path / "run")


def again(whole: Path, run: Path, **changes: Any) -> Recipe:
    return harness.tiny_recipe(whole, output_dir=str(run), **changes)


def assert_same(run: Path, wanted: Path) -> None:
    """Student, optimizer, random states, logged rows and results of two finished runs."""
    assert harness.metrics_rows(run) == harness.metrics_rows(wanted)
    assert (run / "student/model.safetensors").read_bytes() == (
        wanted / "student/model.safetensors"
    ).read_bytes()
    names = [path.name for path in sorted((wanted / "checkpoints").iterdir())]
    ours_kept = [path.name for path in sorted((run / "checkpoints").iterdir())]
    assert ours_kept[-len(names) :] == names  # one more if the last kill came just before its removal
    assert len(ours_kept) <= len(names) + 1
    for name in names:
        ours, theirs = run / "checkpoints" / name, wanted / "checkpoints" / name
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        assert_equal(_read(ours / "optimizer.bin"), _read(theirs / "optimizer.bin"))
        progress = [json.loads((folder / "progress.json").read_text()) for folder in (ours, theirs)]
        for each in progress:
            each.pop("metrics_offset")  # bytes, of which timings take more or fewer
            each.pop("seconds")
            each["window"] = harness.without_timing(each["window"])
        assert progress[0] == progress[1]
    results = [
        harness.without_timing(json.loads((folder / "results.json").read_text())) for folder in (run, wanted)
    ]
    assert results[0] == results[1]


def _read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def test_the_uninterrupted_run_is_what_it_should_be(whole: Path) -> None:
    rows = harness.metrics_rows(whole / "run")
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == [2, 4, 5, 7, 9, 11, 13]
    assert [row["step"] for row in rows if "eval/top1" in row] == [4, 5, 9, 13]
    kept = sorted(path.name for path in (whole / "run/checkpoints").iterdir())
    assert kept == ["step-00000011", "step-00000013"]


def test_a_second_run_is_the_same(whole: Path, second: tuple[Path, float]) -> None:
    assert_same(second[0], whole / "run")


# --- SIGKILL at random moments ----------------------------------------------------------------------------


def kill_and_resume(whole: Path, seconds: float, folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kills `kills` processes, each run continued until it finishes and then compared.

    Returns how many runs were finished and how many kills left a half-written checkpoint.
    """
    chance = random.Random(seed)
    done = finished = torn = 0
    process: BaseProcess | None = None
    while done < kills or process is not None:
        run = folder / f"run{finished}"
        process = harness.start(harness.run_quietly, again(whole, run))
        if done < kills:
            if chance.random() < 0.5:
                _wait_for_saving(process, run)
                time.sleep(chance.uniform(0, 0.02))
            else:
                process.join(seconds * chance.uniform(0.1, 1.0))
        else:
            process.join(60)
        if harness.kill(process):
            done += 1
            torn += any((run / "checkpoints").glob(".*"))
            continue
        assert process.exitcode == 0
        assert_same(run, whole / "run")
        shutil.rmtree(run)
        finished, process = finished + 1, None
    return finished, torn


def _wait_for_saving(process: BaseProcess, run: Path, limit: float = 10) -> None:
    """Until a new folder appears among the checkpoints, whatever its name."""
    until = time.monotonic() + limit
    seen = _listed(run / "checkpoints")
    while process.is_alive() and time.monotonic() < until and _listed(run / "checkpoints") <= seen:
        time.sleep(0.001)  # its core is the process's too


def _listed(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))  # noqa: PTH208
    except FileNotFoundError:
        return set()


def test_killed_three_times(whole: Path, second: tuple[Path, float], tmp_path: Path) -> None:
    finished, _ = kill_and_resume(whole, second[1], tmp_path, kills=3, seed=0)
    assert finished >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_fifty_times(whole: Path, second: tuple[Path, float], tmp_path: Path) -> None:
    finished, torn = kill_and_resume(whole, second[1], tmp_path, kills=50, seed=1)
    assert finished >= 1 and torn >= 5


# --- SIGKILL at every file operation ----------------------------------------------------------------------

_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def run_until_operation(recipe: Recipe, dies: int | str | None, log: Path) -> None:
    """Runs, and dies just before file operation number `dies` (from 0) below output_dir, or before the first
    of that name; what they are: `log`."""
    run, operations = recipe.output_dir, 0
    with log.open("w", buffering=1) as names:

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal operations
            if event not in _EVENTS or not isinstance(arguments[0], str | os.PathLike):
                return
            path = _absolute(event, arguments)
            if not path.startswith(run) or (event == "open" and _reads(arguments)):
                return
            name = f"{event} {path.removeprefix(run)}"
            if dies in (operations, name):
                os.kill(os.getpid(), signal.SIGKILL)
            operations += 1
            names.write(f"{name}\n")

        sys.addaudithook(watch)
        _audit_fsync(run)
        harness.run_quietly(recipe)


def _absolute(event: str, arguments: tuple[Any, ...]) -> str:
    """shutil.rmtree names files relative to the descriptor of their folder, the event's last argument."""
    path = os.fspath(arguments[0])
    if event in ("os.remove", "os.rmdir") and arguments[1] >= 0:
        return str(Path(f"/proc/self/fd/{arguments[1]}").readlink() / path)
    return path


def _reads(arguments: tuple[Any, ...]) -> bool:
    mode, flags = arguments[1], arguments[2]
    return not any(c in mode for c in "wax+") if isinstance(mode, str) else not flags & os.O_WRONLY


def _audit_fsync(run: str) -> None:
    """Makes each flush of a file an operation too: what lies between writing and renaming."""
    flush = transmamba.training.checkpoint.os.fsync

    def fsync(descriptor: int) -> None:
        sys.audit("os.truncate", run + "/flush", 0)
        flush(descriptor)

    transmamba.training.checkpoint.os.fsync = fsync


def operations_of(whole: Path, folder: Path) -> list[str]:
    log = folder / "operations"
    recipe = again(whole, folder / "counted")
    harness.finish(harness.start(run_until_operation, recipe, None, log))
    return log.read_text().splitlines()


def die_at(whole: Path, folder: Path, *each: int | str) -> None:
    """Dies there, and there again where it goes on, and so on; then it goes on to its end."""
    run = folder / "run"
    for dies in each:
        process = harness.start(run_until_operation, again(whole, run), dies, folder / "log")
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, dies
    harness.finish(harness.start(harness.run_quietly, again(whole, run)))
    assert_same(run, whole / "run")
    shutil.rmtree(run)


def test_killed_at_file_operations(whole: Path, tmp_path: Path) -> None:
    """At one operation of each kind, one death after the other: the first file of all; within the removal of
    the first checkpoint; and of a later one within its files, before it counts as whole, and just after."""
    operations = operations_of(whole, tmp_path)
    removal = [name for name in operations if "step-00000003" in name and "remove" in name]
    later = [i for i, name in enumerate(operations) if "step-00000008" in name]
    begun = next(operations[i] for i in later if operations[i].endswith("manifest.json"))
    renamed = next(i for i in later if operations[i].startswith("os.rename"))
    after = next(name for name in operations[renamed + 1 :] if name.startswith("os.rename"))
    die_at(whole, tmp_path, 1, removal[-1], begun, operations[renamed], after)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_every_file_operation(whole: Path, tmp_path: Path) -> None:
    for number in range(len(operations_of(whole, tmp_path))):
        die_at(whole, tmp_path, number)


# --- SIGTERM, and stages ----------------------------------------------------------------------------------


def stop_at(recipe: Recipe, step: int, log_every: int) -> None:
    """Runs, and asks itself to stop by SIGTERM within `step`."""
    import transmamba.training.step

    real = transmamba.training.step.weighted

    def watched(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 * step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    calls = 0
    transmamba.training.step.weighted = watched
    harness.run_quietly(recipe)
    raise AssertionError("the run did not stop")


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5, 7])
def test_sigterm_saves_and_resumes(whole: Path, recipe: Recipe, step: int) -> None:
    """Between two log lines too: what they sum up is part of the checkpoint."""
    run = Path(recipe.output_dir)
    harness.finish(harness.start(stop_at, recipe, step, 2))
    newest = max((run / "checkpoints").iterdir())
    assert newest.name == f"step-{step:08d}"
    assert not (run / "results.json").exists()
    harness.finish(harness.start(harness.run_quietly, recipe))
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(whole / "run/checkpoints", run / "checkpoints")
    assert_same(run, whole / "run")


def without_measuring(recipe: Recipe) -> None:
    """Runs where nobody may ask for the teacher's statistics or start layers as averages."""
    import transmamba.distillation.aligner

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("begun anew")

    transmamba.distillation.aligner.Aligner.measure = refuse  # type: ignore[method-assign]
    transmamba.runs.pipeline.subclone = refuse
    harness.run_quietly(recipe)


def test_statistics_and_averages_are_resumed(whole: Path, tmp_path: Path) -> None:
    """Stopped in the last stage, whose loss needs the statistics: what was measured is in the checkpoint."""
    stopped, straight = (
        again(whole, tmp_path / name, **harness.FULL_METHOD) for name in ("stopped", "straight")
    )
    harness.finish(harness.start(harness.run_quietly, straight))
    harness.finish(harness.start(stop_at, stopped, 7, 2))
    harness.finish(harness.start(without_measuring, stopped))
    assert_same(tmp_path / "stopped", tmp_path / "straight")
    state = load_file(max((tmp_path / "straight/checkpoints").iterdir()) / "model.safetensors")
    assert bool((state["aligners.image.std"] != 1).all()) and bool(state["aligners.image.mean"].any())


def count_stages(recipe: Recipe, log: Path) -> None:
    import transmamba.training.trainer

    real = transmamba.training.trainer.Trainer._step
    taken: list[int] = []

    def counted(self: Any, *arguments: Any) -> Any:
        taken.append(self.progress.stage)
        log.write_text(json.dumps(taken))
        return real(self, *arguments)

    transmamba.training.trainer.Trainer._step = counted  # type: ignore[method-assign]
    harness.run_quietly(recipe)


def test_a_finished_stage_is_not_repeated(whole: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Killed in stage 2 before its first checkpoint: the end of stage 1 is where it goes on."""
    harness.finish(harness.start(stop_at, recipe, 6, 2))
    shutil.rmtree(Path(recipe.output_dir) / "checkpoints" / "step-00000006")
    harness.finish(harness.start(count_stages, recipe, tmp_path / "log"))
    assert json.loads((tmp_path / "log").read_text()) == [1] * STAGES[1]
    assert_same(Path(recipe.output_dir), whole / "run")


def test_other_ways_of_logging_and_saving_give_the_same_student(whole: Path, tmp_path: Path) -> None:
    changes = dict(trainer__save_every=0, trainer__log_every=3, trainer__eval_every=0, trainer__keep=1)
    harness.finish(harness.start(harness.run_quietly, again(whole, tmp_path / "run", **changes)))
    ours, theirs = (folder / "student/model.safetensors" for folder in (tmp_path / "run", whole / "run"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_workers_give_the_same_student(whole: Path, tmp_path: Path) -> None:
    changes = dict(trainer__workers=1, task__augment__color_jitter=0.1)
    harness.finish(harness.start(harness.run_quietly, again(whole, tmp_path / "a", **changes)))
    changes["trainer__workers"] = 0
    harness.finish(harness.start(harness.run_quietly, again(whole, tmp_path / "b", **changes)))
    ours, theirs = (tmp_path / name / "student/model.safetensors" for name in "ab")
    assert ours.read_bytes() == theirs.read_bytes()
