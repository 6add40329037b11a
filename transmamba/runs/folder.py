"""RUN, the folder of a run: whose it is, and what was true when it was made."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from ..config import load as configs
from ..ecosystems.folders import STUDENT_FOLDER, remove_model
from ..errors import ConfigError, UserError
from ..reporting.metrics import RESULTS_FILE
from ..reporting.samples import ITEMS_FILE, SAMPLES_FILE
from ..reporting.tracking import METRICS_FILE, WANDB_ID_FILE
from ..training.checkpoint import list_checkpoints
from .adapter import ADAPTER_FOLDER
from .recipe import Recipe
from .withdrawn import Before, before, unmade, withdrawn

CONFIG, REPORT = "config.yaml", "report.html"
ENVIRONMENT = "environment.json"
SUBCLONE, INDICES = "subclone.json", "train_indices.npy"
# holds a run of each branch
BRANCHES = "branches"
# a teacher as it begins, while a recipe's stages are checked with it
UNTRAINED = "untrained_teacher"
_LOCK = ".lock"
# what a run leaves in its folder, of any version; folders whole
_WRITTEN = (
    RESULTS_FILE,
    CONFIG,
    REPORT,
    ENVIRONMENT,
    SUBCLONE,
    SAMPLES_FILE,
    INDICES,
    ITEMS_FILE,
    METRICS_FILE,
    WANDB_ID_FILE,
    "rotation.safetensors",
    "comparison.html",
    "checkpoints",
    UNTRAINED,
    ADAPTER_FOLDER,
    "wandb",
)
_PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "timm",
    "transformers",
    "accelerate",
    "datasets",
    "safetensors",
    "pydantic",
    "numpy",
    "peft",
    "transmamba",
)


def claim_folder(folder: Path, recipe: Recipe, overwrite: bool) -> Before:
    """Make `folder` this recipe's, or find that it already is; what lay there before. Another run's is
    refused, or with `overwrite` removed: what a run writes, and nothing else that lies there. Raises
    UserError naming the first differences."""
    check_folder(folder, None if overwrite else recipe)
    if overwrite and folder.exists():
        _remove_run(folder)
    # of a launch that was killed while it checked, and perhaps is not to check again
    shutil.rmtree(folder / UNTRAINED, ignore_errors=True)
    there = before(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begun = _has_begun(folder)
        if not begun:
            configs.save_yaml(recipe, folder / CONFIG)
        if not begun or not (folder / ENVIRONMENT).is_file():
            (folder / ENVIRONMENT).write_text(json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output_dir {str(folder)!r} cannot be written: {error.strerror}") from error
    return there


@contextlib.contextmanager
def held(there: Before) -> Iterator[None]:
    """Keeps other processes out of a claimed folder. A UserError within it, before there is anything to go on
    with, leaves the folder as it was before."""
    folder = there.folder
    with unmade(there), sole(folder), withdrawn(there, _WRITTEN, lambda: _has_begun(folder)):
        yield


def check_folder(folder: Path, recipe: Recipe | None) -> None:
    """Raises UserError for a folder that cannot become this recipe's, or without one that of any run."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {str(folder)!r} is a file; write a folder")
    if folder.exists() and any(folder.iterdir()):
        _refuse_what_is_no_run(folder)
        with sole(folder):
            pass
        if recipe is not None and _has_begun(folder):
            _refuse_another_run(folder, recipe)


def _remove_run(folder: Path) -> None:
    """What runs write there, results first, so that half of it is never taken for a finished run."""
    for name in _WRITTEN:
        for path in (folder / name, folder / f"{name}.partial"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for below in (folder / "scratch", *(folder / BRANCHES).glob("*-*")):
        if below.is_dir():
            _remove_run(below)
            with contextlib.suppress(OSError):
                below.rmdir()
    remove_model(folder / STUDENT_FOLDER)
    for name in (STUDENT_FOLDER, "scratch", BRANCHES):
        with contextlib.suppress(OSError):  # something of the user's lies there
            (folder / name).rmdir()


@contextlib.contextmanager
def sole(folder: Path, what: str = "output_dir") -> Iterator[None]:
    """Keeps other processes out of a folder until this one ends, however it ends.

    what: the user's word for the folder

    Raises UserError where one is in it. Where there are no locks, or nothing can be written, all are let in.
    """
    path = folder / _LOCK
    with contextlib.ExitStack() as held:
        try:
            import fcntl

            lock = held.enter_context(path.open("w"))
            # of the process, not of the open file, which the workers that load data would keep
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.callback(path.unlink, missing_ok=True)
        except BlockingIOError:
            raise UserError(
                f"{what} {str(folder)!r} is in use by another process; "
                "wait until it has ended, or choose another folder"
            ) from None
        except (ImportError, OSError):  # Windows has no fcntl
            pass
        yield


def _has_begun(folder: Path) -> bool:
    """Whether there is a row or a checkpoint to continue. Before that a mistake in its recipe may have
    stopped the run, and the mended recipe takes its place."""
    rows = folder / METRICS_FILE
    return bool(list_checkpoints(folder / "checkpoints")) or (rows.is_file() and rows.stat().st_size > 0)


def _refuse_what_is_no_run(folder: Path) -> None:
    """Not even with `overwrite`: what is there may be dear to the user. A run killed while it wrote its first
    file is one."""
    names = {path.name for path in folder.iterdir()}
    if names == {f"{CONFIG}.partial"} or (CONFIG in names and _is_recipe(folder / CONFIG)):
        return
    raise UserError(f"output_dir {str(folder)!r} holds something that is no run; choose another folder")


def _is_recipe(path: Path) -> bool:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(values, dict) and {"task", "student", "stages"} <= values.keys()


def _refuse_another_run(folder: Path, recipe: Recipe) -> None:
    try:
        old = configs.load(Recipe, folder / CONFIG)
    except ConfigError as error:
        raise UserError(
            f"output_dir {str(folder)!r} holds a run of an earlier transmamba ({error.problems[0]}), "
            "which is not resumed; choose another output_dir, or --overwrite"
        ) from error
    changes = list(differences(configs.dump(old), configs.dump(recipe)))
    if changes:
        shown = "; ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
        raise UserError(
            f"output_dir {str(folder)!r} holds another run ({shown}); "
            "choose another output_dir, or --overwrite"
        )


# of the trainer: what changes neither weights nor what is drawn; and the micro-batch, which another number of
# processes may need: the trainer says what draws otherwise
_MAY_DIFFER = (
    "micro_batch",
    "workers",
    "log_every",
    "save_every",
    "keep",
    "cuda_graphs",
    "eval_every",
    "eval_batch_size",
    "grad_checkpointing",
    "max_skipped",
    "teacher_placement",
)


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """`path: old there, new here` for every leaf that differs, but for how it is launched and tracked."""
    if path in (
        "wandb",
        "output_dir",
        *(f"trainer.{key}" for key in _MAY_DIFFER),
    ):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f"{path}.{key}" if path else key
            yield from differences(old.get(key), new.get(key), below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{path}.{index}")
    elif old != new:
        yield f"{path}: {old} there, {new} here"


def environment() -> dict[str, Any]:
    """Versions, hardware and commit, for whoever reads the run later."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    found = torch.cuda.is_available()
    return {
        "packages": versions,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if found else _processor(),
        "cuda": torch.version.cuda if found else None,
        "driver": _driver() if found else None,
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
        "commit": _commit(),
        "command": " ".join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


_DRIVER: list[str] = []  # once it was told: asking takes a second of many a run of seconds


def _driver() -> str | None:
    if not _DRIVER:
        found = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
        _DRIVER.extend([] if found is None else [found])
    return _DRIVER[0] if _DRIVER else None


def _said(*command: str) -> str | None:
    """The first line that a command prints; None where it cannot."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.strip().splitlines()), None)


def _commit() -> str | None:
    """TRANSMAMBA_COMMIT where it is set: a copied tree has no history, or an older one, to ask."""
    if told := os.environ.get("TRANSMAMBA_COMMIT"):
        return told
    here = Path(__file__).resolve().parent
    return _said("git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12")
