"""Decay branches: one trunk, students at several budgets, each as if it had been trained alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from safetensors.torch import load_file

from transmamba.errors import UserError
from transmamba.reporting.metrics import read_results
from transmamba.runs.branches import branches_of
from transmamba.runs.folder import claim_folder
from transmamba.runs.recipe import Recipe
from transmamba.training.interrupted import Interrupted
from transmamba.training.stage import Items
from transmamba.training.step import Stepper


def recipe_of(folder: Path, run: str, *, steps: int, branches: list[float], **stage: Any) -> Recipe:
    """Mixers first, then a stage of so many steps, half of it decay, and of the branches."""
    last = dict(
        name="distill",
        losses=["kl", "feature"],
        steps=steps,
        lr=3e-3,
        warmup=0.0,
        schedule="wsd",
        decay=0.5,
        branches=branches,
    )
    stages = [dict(name="align", losses=["mixer"], steps=3, lr=3e-3), last | stage]
    trainer = dict(global_batch=8, micro_batch=4, save_every=2, keep=1, log_every=2, eval_every=4)
    return harness.tiny_recipe(folder, output_dir=str(folder / run), stages=stages, trainer=trainer)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student/model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trunk with its branch, and each budget by itself."""
    folder = tmp_path_factory.mktemp("branches")
    harness.run_quietly(recipe_of(folder, "trunk", steps=10, branches=[6]))
    for steps in (6, 10):
        harness.run_quietly(recipe_of(folder, f"alone-{steps}", steps=steps, branches=[]))
    return folder


@pytest.mark.parametrize("steps", [6, 10])
def test_a_branch_is_the_run_of_its_length(steps: int, folder: Path) -> None:
    """Weights to the last bit, and the whole log, also of what the trunk did for it."""
    run = folder / "trunk" / ("." if steps == 10 else "branches/steps-6")
    alone = folder / f"alone-{steps}"
    torch.testing.assert_close(weights(run), weights(alone), rtol=0, atol=0)
    assert harness.metrics_rows(run) == harness.metrics_rows(alone)
    ours, theirs = (harness.without_timing(read_results(at / "results.json")) for at in (run, alone))
    assert ours == theirs
    assert (run / "subclone.json").is_file()


def test_where_a_branch_leaves_stays(folder: Path) -> None:
    """Of the others one is kept: 3 steps of mixers, then 3 of 6 at the full rate."""
    kept = sorted(path.name for path in (folder / "trunk/checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000013"]


def test_a_branch_that_was_stopped_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trunk is not trained again."""
    real, asked, taken = Stepper.step, threading.Event(), []

    def step(self: Stepper, micro: Any, number: int, *_: Any) -> Any:
        taken.append(number)
        if len(taken) == 3 + 10 + 2:
            asked.set()
        return real(self, micro, number, asked.is_set)

    monkeypatch.setattr(Stepper, "step", step)
    recipe = recipe_of(tmp_path, "cut", steps=10, branches=[6])
    with pytest.raises(Interrupted):
        harness.run_quietly(recipe)
    assert taken[-2:] == [6, 7], "the branch begins where it leaves the trunk"
    asked.clear()
    harness.run_quietly(recipe)
    assert taken[3 + 10 + 2 :] == [8]
    found = weights(tmp_path / "cut/branches/steps-6")
    torch.testing.assert_close(found, weights(folder / "alone-6"), rtol=0, atol=0)


def test_overwrite_removes_branches(tmp_path: Path) -> None:
    """What a run writes there, and nothing else."""
    recipe = recipe_of(tmp_path, "trunk", steps=4, branches=[2])
    claim_folder(tmp_path / "trunk", recipe, overwrite=False)
    for name in ("steps-2", "steps-3"):
        branch = tmp_path / "trunk/branches" / name
        (branch / "checkpoints/step-00000001").mkdir(parents=True)
        (branch / "results.json").write_text("{}")
    (branch / "mine.txt").write_text("dear to me")
    claim_folder(tmp_path / "trunk", recipe, overwrite=True)
    assert sorted((tmp_path / "trunk/branches").rglob("*")) == [branch, branch / "mine.txt"]


def test_lengths_in_other_units(tmp_path: Path) -> None:
    stage = dict(steps=None, samples=800, branches=[160, 400])
    recipe = recipe_of(tmp_path, "trunk", **(dict(steps=1, branches=[]) | stage))
    first, second = branches_of(recipe, [Items(37)] * len(recipe.stages))
    assert (first.step, second.step) == (3 + 10, 3 + 25)
    assert [Path(each.recipe.output_dir).name for each in (first, second)] == ["samples-160", "samples-400"]
    assert first.recipe.stages[1].samples == 160 and first.recipe.stages[1].branches == ()


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (dict(branches=[20]), "branches has 20; write lengths above 0 and below 14"),
        (dict(branches=[0]), "branches has 0; write lengths above 0"),
        (dict(schedule="cosine"), "branches: given, but schedule is cosine; write schedule: wsd"),
        (dict(decay=0.9, warmup=0.2), "decay: 0.9; write a share above 0, with the warmup 1 at most"),
        (dict(decay=0.0), "decay: 0.0; write a share above 0"),
        (dict(steps=None, percent=50), "branches are lengths, but the stage's own is in percent"),
    ],
)
def test_what_cannot_be_meant_is_refused(stage: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        recipe_of(tmp_path, "run", **(dict(steps=14, branches=[6]) | stage))


def test_a_branch_within_the_warm_up_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run", steps=14, branches=[6], warmup=0.3)
    with pytest.raises(UserError, match="branch 6 begins to decay at step 3, before the stage's warm-up has"):
        harness.run_quietly(recipe)
    assert not (tmp_path / "run" / "checkpoints").exists()
