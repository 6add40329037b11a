"""What a run has written, read for its report and its student's card."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..ecosystems.folders import STUDENT_FOLDER
from ..errors import UserError
from .tracking import METRICS_FILE, read_metrics

# of results.json: key, what people call it, how it is written
METRICS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("top1", "Top-1 accuracy", lambda value: f"{value:.2f} %"),
    ("top5", "Top-5 accuracy", lambda value: f"{value:.2f} %"),
    ("agreement", "Agreement with the teacher", lambda value: f"{value:.2f} %"),
    ("ece", "Calibration error (ECE)", lambda value: f"{value:.2f} %"),
    ("nll", "Negative log-likelihood", lambda value: f"{value:.3f}"),
    ("params", "Parameters", lambda value: count(value)),
    ("images_per_second", "Images per second", lambda value: f"{value:,.0f}"),
    ("peak_memory_mb", "Peak memory", lambda value: f"{value:,.0f} MB"),
    ("minutes", "Minutes of training", lambda value: f"{value:.1f}"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run folder holds; an absent file is an empty value.

    samples: labels, student_pred, teacher_pred (N,) over the evaluated split, class_names (K,);
             images (M, H, W, 3) uint8 and image_index (M,), their places in the predictions
    """

    name: str
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    scratch_rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    subclone: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def folder_of_run(path: Path) -> Path:
    """RUN, given RUN or RUN/student. Raises UserError if it is no folder."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; write the output_dir of a run")
    parent = path.resolve().parent
    run = parent if path.resolve().name == STUDENT_FOLDER and (parent / METRICS_FILE).is_file() else path
    if not any((run / name).is_file() for name in (METRICS_FILE, "results.json", "config.yaml")):
        raise UserError(f"{path}: holds no run; write the output_dir of a run")
    return run


def read_run(run: Path) -> RunData:
    """Reads all that the report can show. Raises UserError naming a file that cannot be read."""

    def rows(path: Path) -> list[dict[str, Any]]:
        return read_metrics(path) if path.is_file() else []

    return RunData(
        name=run.resolve().name,
        results=_mapping(run / "results.json", json.loads),
        rows=rows(run / METRICS_FILE),
        scratch_rows=rows(run / "scratch" / METRICS_FILE),
        config=_mapping(run / "config.yaml", yaml.safe_load),
        samples=_arrays(run / "samples.npz"),
        subclone=_mapping(run / "subclone.json", json.loads),
    )


def part_label(part: Any, default: str) -> str:
    """What to call a part of a config: the model it names, else its own name."""
    if isinstance(part, Mapping):
        return str(part.get("model") or part.get("name") or default)
    return str(part) if part else default


def watched_split(config: Mapping[str, Any]) -> str:
    """What a run was evaluated on while it trained: the share of the training images that was held out, if
    any."""
    task = config.get("task")
    return "validation" if isinstance(task, Mapping) and task.get("validation") else "test"


def final_split(config: Mapping[str, Any]) -> str:
    """What a run's results were measured on: what the recipe says, or the split it was watched on."""
    task = config.get("task")
    named = task.get("final_split") if isinstance(task, Mapping) else None
    return named or watched_split(config)


def class_names(samples: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the classes; where a run gave none, their numbers."""
    given = [str(name) for name in samples.get("class_names", ())]
    keys = [key for key in ("labels", "student_pred", "teacher_pred") if key in samples]
    most = 1 + max(int(samples[key].max(initial=0)) for key in keys)
    return given + [str(index) for index in range(len(given), most)]


def _mapping(path: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); delete it or run again"
        ) from None
    return data if isinstance(data, Mapping) else {}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete it or run `transmamba evaluate` again"
        ) from None


def count(value: float) -> str:
    """`1.23 M` for 1,234,567."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
