"""Checkpoints are whole or not there, and a full disk is told in one line."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import transmamba.training.checkpoint
from transmamba.errors import UserError
from transmamba.training.checkpoint import (
    Progress,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    read_progress,
    save_checkpoint,
    set_damaged_aside,
    sweep,
)
from transmamba.training.strategies import Plain


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
    items = {"samples": 56, "tokens": 700}
    progress = Progress(
        stage=1, stage_step=2, step=7, items=items, seconds=1 / 3, evaluating=True, window=window
    )
    saved = save_checkpoint(Plain(accelerator), tmp_path, progress, keep=2)
    assert read_progress(saved) == progress
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()  # type: ignore[operator]
    load_checkpoint(Plain(accelerator), saved)
    assert torch.equal(model.weight, weight)  # type: ignore[arg-type]


def test_retention_keeps_the_newest(tmp_path: Path) -> None:
    accelerator, _ = prepared()
    for step in (2, 9, 10, 100):
        save_checkpoint(Plain(accelerator), tmp_path, Progress(step=step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_torn_folders_are_never_picked_and_swept_away(tmp_path: Path) -> None:
    accelerator, _ = prepared()
    whole = save_checkpoint(Plain(accelerator), tmp_path, Progress(step=1), keep=2)
    torn = tmp_path / ".saving-step-00000002"
    torn.mkdir()
    (torn / "progress.json").write_text("{}")
    (tmp_path / "step-00000003").mkdir()  # somebody's empty folder
    assert list_checkpoints(tmp_path) == [whole]
    sweep(tmp_path)
    assert not torn.exists()


def test_nothing_saved_yet(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_damaged_progress_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(UserError, match=r"progress\.json: cannot be read") as caught:
        read_progress(tmp_path)
    assert "\n" not in str(caught.value)


def test_another_version_s_progress_is_refused(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"stage": 1}')
    with pytest.raises(UserError, match="has no 'stage_step': an earlier transmamba made it"):
        read_progress(tmp_path)


def test_progress_counts_items_by_kind() -> None:
    progress = Progress()
    for items in ({"samples": 8, "tokens": 100}, {"samples": 8, "tokens": 0}, {"samples": 2}):
        progress.count(items)
    assert (progress.step, progress.stage_step) == (3, 3)
    assert progress.seen() == {"samples": 18, "tokens": 100}


# --- a damaged checkpoint ---------------------------------------------------------------------------------


def shorten(checkpoint: Path) -> str:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return "model.safetensors: has"


def lose_a_file(checkpoint: Path) -> str:
    (checkpoint / "optimizer.bin").unlink()
    return "optimizer.bin: is missing"


def lose_the_list(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").unlink()
    return "manifest.json: cannot be read"


def spoil_progress(checkpoint: Path) -> str:
    (checkpoint / "progress.json").write_text("{")
    return "progress.json: cannot be read"


DAMAGES = [shorten, lose_a_file, lose_the_list, spoil_progress]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: Any) -> None:
    """For the newest whole one, saying so; nothing is removed, and its step can be saved again."""
    accelerator, _ = prepared()
    for step in (1, 2, 3):
        save_checkpoint(Plain(accelerator), tmp_path, Progress(step=step), keep=3)
    said: list[str] = []
    what = damage(tmp_path / "step-00000003")
    set_damaged_aside(tmp_path, said.append)
    found = find_checkpoint(tmp_path)
    assert found == (tmp_path / "step-00000002", Progress(step=2))
    assert len(said) == 1 and what in said[0] and said[0].endswith("going on from step-00000002")
    damage(tmp_path / "step-00000002")
    save_checkpoint(Plain(accelerator), tmp_path, Progress(step=3), keep=3)
    what = damage(tmp_path / "step-00000003")
    set_damaged_aside(tmp_path, said.append)
    found = find_checkpoint(tmp_path)
    assert found is not None and found[1].step == 1 and len(said) == 3
    load_checkpoint(Plain(accelerator), found[0])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["damaged-step-00000002", "damaged-step-00000003", "step-00000001"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_none_is_whole_the_run_is_not_begun_anew_unasked(tmp_path: Path, damage: Any) -> None:
    accelerator, _ = prepared()
    what = damage(save_checkpoint(Plain(accelerator), tmp_path, Progress(step=1), keep=1))
    with pytest.raises(UserError, match=f"{what}.*no older checkpoint is whole: .*--overwrite"):
        find_checkpoint(tmp_path)
    set_damaged_aside(tmp_path, print)
    assert len(list_checkpoints(tmp_path)) == 1, "untouched"


def test_none_is_found_where_none_was_saved(tmp_path: Path) -> None:
    set_damaged_aside(tmp_path / "missing", print)
    assert find_checkpoint(tmp_path) is None
    assert find_checkpoint(tmp_path / "missing") is None


def test_another_architecture_is_refused_in_one_line(tmp_path: Path) -> None:
    accelerator, _ = prepared()
    saved = save_checkpoint(Plain(accelerator), tmp_path, Progress(step=1), keep=1)
    other, _ = prepared(width=5)
    with pytest.raises(UserError, match="does not fit this recipe's student") as caught:
        load_checkpoint(Plain(other), saved)
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
    first = save_checkpoint(Plain(accelerator), small_disk, Progress(step=1), keep=2)
    with (small_disk / "ballast").open("wb") as file:
        usage = os.statvfs(small_disk)
        file.write(b"0" * (usage.f_bavail * usage.f_frsize - spare))
    with pytest.raises(UserError, match="no space left to save step 2; earlier checkpoints are whole"):
        save_checkpoint(Plain(accelerator), small_disk, Progress(step=2), keep=2)
    assert list_checkpoints(small_disk) == [first]
    load_checkpoint(Plain(accelerator), first)
    (small_disk / "ballast").unlink()
    save_checkpoint(Plain(accelerator), small_disk, Progress(step=2), keep=1)
    assert [path.name for path in small_disk.iterdir()] == ["step-00000002"]


def test_full_disk_found_out_when_flushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, _ = prepared()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transmamba.training.checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        save_checkpoint(Plain(accelerator), tmp_path, Progress(step=1), keep=1)
    assert list(tmp_path.iterdir()) == []


def test_other_failures_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, _ = prepared()
    monkeypatch.setattr(accelerator, "save_state", lambda _: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        save_checkpoint(Plain(accelerator), tmp_path, Progress(step=1), keep=1)
