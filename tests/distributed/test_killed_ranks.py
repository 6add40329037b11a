"""SIGKILL of one rank, of all, and within saving: nothing is torn, and the resumed run is the uninterrupted
one, under DDP and FSDP2."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import harness
import pytest
import torch
from safetensors.torch import load_file

from transmamba.runs.recipe import Recipe

STRATEGIES = {"ddp": {}, "fsdp2": harness.FSDP2}
RANKS = 2


def recipe_of(folder: Path, run: Path) -> Recipe:
    """Adaptive weights, and a loss with nets of its own; saved at every second step."""
    stages = [
        dict(name="align", losses=["mixer"], steps=3, lr=3e-3),
        dict(name="distill", losses=["kl", "cab", "bidirectional"], steps=5, lr=3e-3),
    ]
    trainer = dict(global_batch=8, micro_batch=2, save_every=2, log_every=1, eval_every=3, eval_batch_size=4)
    parts = dict(stages=stages, trainer=trainer, student__kwargs=harness.SHALLOW)
    return harness.tiny_recipe(folder, output_dir=str(run), **parts)


def launched(environment: dict[str, str], recipe: Recipe, dies: tuple[int, str, int] | None = None) -> None:
    """Runs; `dies` (rank, where, save) kills that rank within its so many-th save."""
    os.environ.update(environment)
    if dies is not None and int(os.environ["RANK"]) == dies[0]:
        _die_at(dies[1], dies[2])
    harness.run_quietly(recipe)


def _die_at(where: str, number: int) -> None:
    import transmamba.training.checkpoint as checkpoint
    import transmamba.training.trainer as trainer

    real, saves = trainer.save_checkpoint, 0

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save(strategy: Any, *arguments: Any) -> Any:
        nonlocal saves
        saves += 1
        if saves == number and where == "before its files":
            strategy.save = lambda folder: (time.sleep(0.5), die())
        elif saves == number and where == "after its files":
            write = strategy.save
            strategy.save = lambda folder: (write(folder), die())
        elif saves == number and where == "before the rename":
            checkpoint.Path.rename = die  # type: ignore[method-assign]
        return real(strategy, *arguments)

    trainer.save_checkpoint = save


class Whole(NamedTuple):
    """A strategy, the folder of its uninterrupted run, and the seconds that it took."""

    strategy: str
    folder: Path
    seconds: float


@pytest.fixture(scope="module", params=STRATEGIES)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp(request.param)
    harness.finish(harness.start(int))  # the forkserver imports before it is asked for the first time
    begins = time.monotonic()
    harness.in_ranks(RANKS, launched, STRATEGIES[request.param], recipe_of(folder, folder / "whole"))
    return Whole(request.param, folder, time.monotonic() - begins)


def resume(strategy: str, folder: Path, run: Path) -> None:
    assert_untorn(run)
    harness.in_ranks(RANKS, launched, STRATEGIES[strategy], recipe_of(folder, run))
    wanted = folder / "whole"
    assert harness.metrics_rows(run) == harness.metrics_rows(wanted)
    ours, theirs = (load_file(path / "student/model.safetensors") for path in (run, wanted))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shutil.rmtree(run)


def assert_untorn(run: Path) -> None:
    """Every checkpoint that looks whole has every rank's files, as long as they were when written."""
    for saved in (run / "checkpoints").glob("step-*"):
        sizes = json.loads((saved / "manifest.json").read_text())
        assert {name: (saved / name).stat().st_size for name in sizes} == sizes
        for rank in range(RANKS):
            assert any(name.rpartition("_")[2].startswith(f"{rank}.") for name in sizes), sorted(sizes)


def ended(processes: list[BaseProcess], doomed: list[BaseProcess]) -> bool:
    """Kill those, as a fault of a machine does; the launcher ends the others. Whether any was at work."""
    killed = [harness.kill(process) for process in doomed]
    for process in processes:
        process.join(0 if all(killed) and len(doomed) == len(processes) else 3)
        harness.kill(process)
    return any(killed)


def kill_and_resume(whole: Whole, run: Path, doomed: list[list[int]], seed: int) -> None:
    """Those ranks killed at random moments, launch by launch, within saving at every second; then resumed to
    its end."""
    strategy, folder, seconds = whole
    chance = random.Random(seed)
    for number, ranks in enumerate(doomed):
        processes = harness.start_ranks(RANKS, launched, STRATEGIES[strategy], recipe_of(folder, run))
        if number % 2:
            _wait_for_saving(processes, run)
            time.sleep(chance.uniform(0, 0.05))
        else:
            processes[0].join(seconds * chance.uniform(0.2, 1.0))
        ended(processes, [processes[rank] for rank in ranks])
        assert_untorn(run)
    resume(strategy, folder, run)


def _wait_for_saving(processes: list[BaseProcess], run: Path, limit: float = 10) -> None:
    until = time.monotonic() + limit
    while processes[0].is_alive() and time.monotonic() < until:
        if any((run / "checkpoints").glob(".saving-*")):
            return
        time.sleep(0.001)  # its core is the processes' too


def test_killed_at_random(whole: Whole, tmp_path: Path) -> None:
    """One rank first, then both."""
    kill_and_resume(whole, tmp_path / "run", doomed=[[1], [0, 1]], seed=0)


def test_killed_within_saving(whole: Whole, tmp_path: Path) -> None:
    """Where it is worst: before a rank's files are there, after them, and before they count as whole."""
    strategy, folder, _ = whole
    run = tmp_path / "run"
    for dies in ((1, "before its files", 2), (1, "after its files", 2), (0, "before the rename", 1)):
        recipe = recipe_of(folder, run)
        processes = harness.start_ranks(RANKS, launched, STRATEGIES[strategy], recipe, dies)
        processes[dies[0]].join(60)
        assert processes[dies[0]].exitcode == -signal.SIGKILL
        ended(processes, [])
        assert_untorn(run)
    resume(strategy, folder, run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("doomed", [[0], [1], [0, 1]])
def test_killed_many_times(whole: Whole, tmp_path: Path, doomed: list[int]) -> None:
    for seed in range(5):
        kill_and_resume(whole, tmp_path / f"run{seed}", [doomed] * 4, seed=seed)
