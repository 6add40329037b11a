"""Checkpoints that are either whole or not there.

A checkpoint is written into a hidden folder, flushed to the disk, and renamed: the one step that cannot be
torn. What a killed run left half-written is never picked and is swept away by the next save.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

PROGRESS_FILE = "progress.json"
_PREFIX, _TEMPORARY = "step-", ".saving-"


@dataclass
class Progress:
    """Where a run is: stage by number, steps done in it, steps and samples done in all, rows logged
    (bytes)."""

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    skipped: int = 0
    metrics_offset: int = 0


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int) -> Path:
    """Save what the accelerator prepared, and `progress`, as folder/step-N; keep the newest `keep`.

    All ranks call it. Raises UserError when the disk is full; earlier checkpoints are untouched then.
    """
    name = f"{_PREFIX}{progress.step:08d}"
    final, temporary = folder / name, folder / f"{_TEMPORARY}{name}"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir()
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            (temporary / PROGRESS_FILE).write_text(json.dumps(asdict(progress)))
    except (OSError, RuntimeError) as error:
        if not _disk_is_full(error, folder):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{folder}: no space left to save step {progress.step}; earlier checkpoints are whole. "
            "Free some space, or set trainer.keep=1, and start the same command again"
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _flush(temporary)
        if final.exists():  # the same step saved again, by a run that was resumed from it
            shutil.rmtree(final)
        temporary.rename(final)
        _flush_folder(folder)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / PROGRESS_FILE).is_file())


def read_progress(checkpoint: Path) -> Progress:
    """Raises UserError when the file is damaged."""
    path = checkpoint / PROGRESS_FILE
    try:
        values = json.loads(path.read_text())
        return Progress(**{field.name: values[field.name] for field in fields(Progress)})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove the folder to use an older one") from error


def load_checkpoint(accelerator: Accelerator, checkpoint: Path) -> None:
    """Fill what the accelerator prepared. Raises UserError when it was saved from another architecture."""
    try:
        accelerator.load_state(str(checkpoint))
    except (RuntimeError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{checkpoint}: does not fit this recipe's student ({first}); "
            "use the recipe it was saved by, another output_dir, or --overwrite"
        ) from error


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # torch's own writer reports a full disk as a RuntimeError without an errno
    writing = "write" in str(error).lower() or "PytorchStreamWriter" in str(error)
    return writing and isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 1 << 20


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _flush_folder(path)
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
