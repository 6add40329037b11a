"""Checkpoints are whole or not there; a run's folder is claimed by one recipe."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from accelerate import Accelerator

import transmamba.training.checkpoint
from transmamba.errors import UserError
from transmamba.runs.run import claim_folder
from transmamba.training.checkpoint import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
    sweep,
)


def prepared(width: int = 4) -> tuple[Accelerator, torch.nn.Module]:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(width, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    model(torch.ones(2, width)).sum().backward()
    optimizer.step()
    return accelerator, model


def test_round_trip(tmp_path: Path) -> None:
    accelerator, model = prepared()
    window = {"sums": {"loss": 0.1}}
    progress = Progress(stage=1, stage_step=2, step=7, samples=56, seconds=1 / 3, window=window)
    saved = save_checkpoint(accelerator, tmp_path, progress, keep=2)
    assert read_progress(saved) == progress
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()  # type: ignore[operator]
    load_checkpoint(accelerator, saved)
    assert torch.equal(model.weight, weight)  # type: ignore[arg-type]


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    accelerator, _ = prepared()
    for step in (2, 9, 10, 100):
        save_checkpoint(accelerator, tmp_path, Progress(step=step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_torn_folders_are_never_picked_and_swept_away(tmp_path: Path) -> None:
    accelerator, _ = prepared()
    whole = save_checkpoint(accelerator, tmp_path, Progress(step=1), keep=2)
    torn = tmp_path / ".saving-step-00000002"
    torn.mkdir()
    (torn / "progress.json").write_text("{}")
    (tmp_path / "step-00000003").mkdir()  # somebody's empty folder
    assert list_checkpoints(tmp_path) == [whole]
    sweep(tmp_path)
    assert not torn.exists()


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize("content", ["", "{", '{"stage": 1}', "[]", "3"])
def test_damaged_progress_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(UserError, match=r"progress\.json: cannot be read .*remove the folder"):
        read_progress(tmp_path)


def test_another_architecture_is_refused_in_one_line(tmp_path: Path) -> None:
    accelerator, _ = prepared()
    saved = save_checkpoint(accelerator, tmp_path, Progress(step=1), keep=1)
    other, _ = prepared(width=5)
    with pytest.raises(UserError, match="does not fit this recipe's student") as caught:
        load_checkpoint(other, saved)
    assert "\n" not in str(caught.value) and "weight" in str(caught.value)


# --- a full disk ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("spare", [0, 8_000, 16_000, 40_000])
def test_full_disk(small_disk: Path, spare: int) -> None:
    """Whichever file it is that no longer fits, the earlier checkpoint stays whole."""
    accelerator, _ = prepared(width=2_000)  # 24 kB of weights, 48 kB of optimizer state
    first = save_checkpoint(accelerator, small_disk, Progress(step=1), keep=2)
    with (small_disk / "ballast").open("wb") as file:
        usage = os.statvfs(small_disk)
        file.write(b"0" * (usage.f_bavail * usage.f_frsize - spare))
    with pytest.raises(UserError, match="no space left to save step 2; earlier checkpoints are whole"):
        save_checkpoint(accelerator, small_disk, Progress(step=2), keep=2)
    assert list_checkpoints(small_disk) == [first]
    load_checkpoint(accelerator, first)
    (small_disk / "ballast").unlink()
    save_checkpoint(accelerator, small_disk, Progress(step=2), keep=1)
    assert [path.name for path in small_disk.iterdir()] == ["step-00000002"]


def test_full_disk_found_out_when_flushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, _ = prepared()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transmamba.training.checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        save_checkpoint(accelerator, tmp_path, Progress(step=1), keep=1)
    assert list(tmp_path.iterdir()) == []


def test_other_failures_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, _ = prepared()
    monkeypatch.setattr(accelerator, "save_state", lambda _: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        save_checkpoint(accelerator, tmp_path, Progress(step=1), keep=1)


# --- whose folder it is -----------------------------------------------------------------------------------


def begin(run: Path) -> None:
    """As far as a first checkpoint, before the first row."""
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    (run / "checkpoints" / "step-00000003" / "progress.json").write_text("{}")


def test_a_run_that_never_began_gives_way(tmp_path: Path) -> None:
    """A mistake in a recipe is mended, and the same command is started again."""
    recipe = harness.tiny_recipe(tmp_path)
    claim_folder(tmp_path / "run", recipe, overwrite=False)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    claim_folder(tmp_path / "run", replace(recipe, seed=4), overwrite=False)
    assert "seed: 4" in (tmp_path / "run" / "config.yaml").read_text()


def test_another_run_is_refused_or_overwritten(tmp_path: Path) -> None:
    recipe = harness.tiny_recipe(tmp_path)
    run = tmp_path / "run"
    claim_folder(run, recipe, overwrite=False)
    begin(run)
    claim_folder(run, recipe, overwrite=False)
    other = replace(recipe, seed=4, stages=recipe.stages[:1])
    with pytest.raises(UserError, match=r"holds another run \(seed: 3 there, 4 here; stages.*--overwrite"):
        claim_folder(run, other, overwrite=False)
    assert (run / "checkpoints").is_dir()
    claim_folder(run, other, overwrite=True)
    assert not (run / "checkpoints").exists() and (run / "config.yaml").is_file()


def test_launching_otherwise_is_the_same_run(tmp_path: Path) -> None:
    recipe = harness.tiny_recipe(tmp_path)
    claim_folder(tmp_path / "run", recipe, overwrite=False)
    begin(tmp_path / "run")
    trainer = replace(recipe.trainer, workers=2, log_every=7, save_every=1, keep=5)
    claim_folder(tmp_path / "run", replace(recipe, trainer=trainer), overwrite=False)
    with pytest.raises(UserError, match=r"trainer\.batch_size: 4 there, 5 here"):
        claim_folder(
            tmp_path / "run", replace(recipe, trainer=replace(trainer, batch_size=5)), overwrite=False
        )


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_refused(tmp_path: Path, overwrite: bool) -> None:
    """With --overwrite too, which would delete it."""
    precious = tmp_path / "thesis.tex"
    precious.write_text("years of work")
    with pytest.raises(UserError, match="holds something that is no run"):
        claim_folder(tmp_path, harness.tiny_recipe(tmp_path.parent / "elsewhere"), overwrite=overwrite)
    assert precious.read_text() == "years of work"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; write a folder"):
        claim_folder(tmp_path / "file", harness.tiny_recipe(tmp_path), overwrite=False)


def test_killed_while_claiming(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml.partial").write_text("output_")
    claim_folder(run, harness.tiny_recipe(tmp_path), overwrite=False)
    assert (run / "config.yaml").is_file()


def refuses_to_train(recipe: Any) -> None:
    import transmamba.runs.run

    def fail(*_: Any) -> None:
        raise AssertionError("it trained again")

    transmamba.runs.run.assemble = fail  # type: ignore[assignment]
    wanted = json.loads((Path(recipe.output_dir) / "results.json").read_text())
    assert harness.run_quietly(recipe) == wanted


def test_a_finished_run_returns_its_results(tmp_path: Path) -> None:
    recipe = harness.tiny_recipe(tmp_path)
    harness.finish(harness.start(harness.run_quietly, recipe))
    harness.finish(harness.start(refuses_to_train, recipe))


def refused_for_processes(recipe: Any) -> None:
    with pytest.raises(UserError, match=r"started on 1 processes, this is 2: .* launch as many again"):
        harness.run_quietly(recipe)


def test_resuming_on_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    """Its steps would be of another size, and its schedule of another length."""
    recipe = harness.tiny_recipe(tmp_path)
    harness.finish(harness.start(harness.run_quietly, recipe))
    (tmp_path / "run" / "results.json").unlink()
    harness.in_ranks(2, refused_for_processes, recipe)
