"""Checkpoints that are either whole or not there.

A checkpoint is written into a hidden folder, flushed to the disk, and renamed: the one step that cannot be
torn. What a killed run left half-written is never picked, and swept away by the next.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError

from ..ecosystems.folders import let_read
from ..errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator


class Saving(Protocol):
    """Of a strategy, what a checkpoint needs."""

    accelerator: Accelerator

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


PROGRESS_FILE = "progress.json"
MANIFEST_FILE = "manifest.json"
_PREFIX, _TEMPORARY, _DAMAGED = "step-", ".saving-", "damaged-"


@dataclass
class Progress:
    """Where a run is: stage by number, steps done in it, steps done in all, items seen by kind, rows logged
    (bytes), what was summed since the last row, and whether an evaluation is still to come; on how many
    processes, how it is spread over them, and items of each at a time."""

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    items: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: int = 0
    metrics_offset: int = 0
    processes: int = 1
    strategy: str = "plain"
    micro_batch: int = 1
    evaluating: bool = False
    window: dict[str, Any] = field(default_factory=dict)

    def count(self, items: Mapping[str, int]) -> None:
        """One more step, which had so many items of each kind."""
        self.step += 1
        self.stage_step += 1
        for kind, number in items.items():
            self.items[kind] = self.items.get(kind, 0) + number

    def seen(self) -> dict[str, int]:
        """Samples, tokens and whatever else was seen so far, for the log."""
        return dict(self.items)


def save_checkpoint(
    strategy: Saving, folder: Path, progress: Progress, keep: int, kept: Collection[int] = ()
) -> Path:
    """Save what the strategy holds, and `progress`, as folder/step-N; keep the newest `keep`, and those of
    the steps `kept`.

    All ranks call it. Raises UserError when the disk is full; earlier checkpoints are untouched then.
    """
    accelerator = strategy.accelerator
    final = checkpoint_at(folder, progress.step)
    temporary = folder / f"{_TEMPORARY}{final.name}"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        temporary.mkdir()
    accelerator.wait_for_everyone()
    try:
        strategy.save(temporary)
        accelerator.wait_for_everyone()  # while a rank writes, files come and go under other names
        if not accelerator.is_main_process:
            _flush(temporary)  # where this rank's files are another machine's, that one cannot flush them
        accelerator.wait_for_everyone()  # until every rank's files are there to be listed
        if accelerator.is_main_process:
            let_read(temporary)
            sizes = {str(file.relative_to(temporary)): file.stat().st_size for file in _files(temporary)}
            (temporary / MANIFEST_FILE).write_text(json.dumps(sizes))
            (temporary / PROGRESS_FILE).write_text(json.dumps(asdict(progress)))
            _flush(temporary)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _disk_is_full(error, folder):
            raise
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{folder}: no space left to save step {progress.step}; earlier checkpoints are whole. "
            "Free some space, or set trainer.keep=1, and start the same command again"
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        temporary.rename(final)
        _flush_folder(folder)
        stay = {checkpoint_at(folder, step) for step in kept}
        for old in (path for path in list_checkpoints(folder)[:-keep] if path not in stay):
            doomed = folder / f"{_TEMPORARY}{old.name}"  # so that half of it is never taken for a whole one
            old.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    accelerator.wait_for_everyone()
    return final


def checkpoint_at(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, counted over all stages."""
    return folder / f"{_PREFIX}{step:08d}"


def sweep(folder: Path) -> None:
    """Remove what a killed run left half-written or half-removed."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if (path / PROGRESS_FILE).is_file())


def set_damaged_aside(folder: Path, say: Callable[[str], None]) -> None:
    """Rename what is newer than the newest whole checkpoint to damaged-step-N, and say so: the run will save
    those steps again. Nothing is touched where no checkpoint is whole. One process calls it."""
    damaged: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            read_checkpoint(path)
        except UserError as error:
            damaged.append((path, str(error)))
            continue
        for other, why in damaged:
            aside = folder / f"{_DAMAGED}{other.name}"
            shutil.rmtree(aside, ignore_errors=True)  # from when the same step was damaged before
            other.rename(aside)
            say(f"{why}; set aside as {aside.name}, going on from {path.name}")
        return


def find_checkpoint(folder: Path) -> tuple[Path, Progress] | None:
    """The newest checkpoint and its progress; None where there is none. Raises UserError for a damaged one,
    which is the newest only where `set_damaged_aside` found none whole."""
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return None
    try:
        return checkpoints[-1], read_checkpoint(checkpoints[-1])
    except UserError as error:
        raise UserError(f"{error}; no older checkpoint is whole: start anew with --overwrite") from error


def read_checkpoint(checkpoint: Path) -> Progress:
    """Progress of a whole checkpoint. Raises UserError for a damaged one."""
    progress = read_progress(checkpoint)
    _check_sizes(checkpoint)
    return progress


def read_progress(checkpoint: Path) -> Progress:
    """Raises UserError when the file is damaged, or another version's."""
    path = checkpoint / PROGRESS_FILE
    try:
        values = json.loads(path.read_text())
        return Progress(**{field.name: values[field.name] for field in fields(Progress)})
    except KeyError as error:
        raise UserError(
            f"{path}: has no {error}: an earlier transmamba made it, and its runs are not resumed"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _check_sizes(checkpoint: Path) -> None:
    """Raises UserError for a file that is missing, or not as long as it was when it was written."""
    try:
        sizes = json.loads((checkpoint / MANIFEST_FILE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint / MANIFEST_FILE}: cannot be read ({error})") from error
    for name, size in sizes.items():
        file = checkpoint / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise UserError(f"{file}: {'is missing' if found is None else f'has {found} bytes, not {size}'}")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def load_checkpoint(strategy: Saving, checkpoint: Path) -> None:
    """Fill what the strategy holds. Raises UserError when it was saved from another architecture."""
    try:
        strategy.load(checkpoint)
    except (RuntimeError, ValueError, KeyError) as error:
        # torch's first line only says that there is more
        lines = str(error).strip().splitlines() or [type(error).__name__]
        first = lines[min(1, len(lines) - 1)].strip()
        raise UserError(
            f"{checkpoint}: does not fit this recipe's student ({first}); "
            "use the recipe it was saved by, another output_dir, or --overwrite"
        ) from error


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "os error 28" in str(error):  # safetensors' way of saying ENOSPC
        return True
    # torch's own writer reports a full disk as a RuntimeError without an errno
    torch_writer = any(word in str(error) for word in ("write", "Writer", "inline_container", "iostream"))
    return torch_writer and isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 1 << 20


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
