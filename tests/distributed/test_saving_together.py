"""Ranks that save into one folder leave each other's half-written files alone."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
from accelerate import Accelerator

from transmamba.training.checkpoint import Progress, list_checkpoints, save_checkpoint


def saved(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)

    def save(into: Path) -> None:
        """The first rank writes for a second, as safetensors does: another name first, then its own."""
        if not accelerator.is_main_process:
            (into / "second").write_text("2")
            return
        until = time.monotonic() + 1
        while time.monotonic() < until:
            for number in range(20):
                (into / f".tmp{number}").write_text("1")
                (into / f".tmp{number}").rename(into / f"first{number}")

    strategy: Any = SimpleNamespace(accelerator=accelerator, save=save, name="ddp")
    for step in (1, 2, 3):
        progress = Progress(step=step)
        save_checkpoint(strategy, folder, progress, keep=2)


def test_a_rank_that_is_done_waits_for_one_that_writes(tmp_path: Path) -> None:
    harness.in_ranks(2, saved, tmp_path)
    kept = list_checkpoints(tmp_path)
    assert [path.name for path in kept] == ["step-00000002", "step-00000003"]
    assert all((path / "first19").is_file() and (path / "second").is_file() for path in kept)
