"""A recipe with `leaves: numbers`: whatever happened on the way, nothing else is left of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import harness
import pytest

from transmamba.runs import run as runs
from transmamba.training.checkpoint import list_checkpoints
from transmamba.training.interrupted import Interrupted

NUMBERS: dict[str, Any] = dict(leaves="numbers", trainer__eval_every=0)


@pytest.mark.parametrize("save_every", [None, 3])
def test_an_interrupted_run_leaves_what_an_undisturbed_one_does(
    save_every: int | None, tmp_path: Path
) -> None:
    changes = {**NUMBERS, "trainer__save_every": save_every}
    undisturbed = harness.tiny_recipe(tmp_path, output_dir=str(tmp_path / "undisturbed"), **changes)
    wanted = harness.without_timing(harness.run_quietly(undisturbed))
    recipe, stop = harness.tiny_recipe(tmp_path, **changes), threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        harness.run_quietly(recipe, stop=stop)
    saved = tmp_path / "run" / "checkpoints"
    assert list_checkpoints(saved), "to go on from"
    assert harness.without_timing(harness.run_quietly(recipe)) == wanted
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in (tmp_path / "undisturbed").iterdir()}
    assert "results.json" in names and not names & {"checkpoints", "student", "report.html"}


def test_one_killed_before_its_checkpoints_were_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    recipe = harness.tiny_recipe(tmp_path, **NUMBERS)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(runs, "leave_numbers_alone", killed)
        harness.run_quietly(recipe)
    assert list_checkpoints(tmp_path / "run" / "checkpoints")
    results = harness.run_quietly(recipe)
    assert results["student"]["top1"] is not None and not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_leaves_everything_keeps_its_checkpoints(tmp_path: Path) -> None:
    harness.run_quietly(harness.tiny_recipe(tmp_path))
    assert list_checkpoints(tmp_path / "run" / "checkpoints")
