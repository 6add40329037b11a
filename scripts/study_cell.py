"""A finished cell of a study: its figures, and on which test images it was right, out of its run folder."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from transmamba.errors import UserError
from transmamba.reporting.tracking import METRICS_FILE, read_metrics
from transmamba.runs.folder import CONFIG, ENVIRONMENT, INDICES, RESULTS, SAMPLES

LARGEST_MISMATCH = 0.1  # points between results.json and samples.npz: ties among logits, no more

Cell = dict[str, Any]
Bits = npt.NDArray[np.uint8]


def read_cell(folder: Path, labels: dict[str, str]) -> tuple[Cell, Bits] | None:
    """A run's figures and its packed correctness; None if it is not finished. Raises UserError if damaged."""
    if not (folder / RESULTS).is_file():
        return None
    try:
        results = json.loads((folder / RESULTS).read_text())
        with np.load(folder / SAMPLES, allow_pickle=False) as samples:
            targets, predicted = samples["labels"], samples["student_pred"]
        right = targets == predicted
        student, teacher = results["student"], results.get("teacher") or {}
        top1 = float(student["top1"])
        config = (folder / CONFIG).read_bytes()
        task = (yaml.safe_load(config) or {}).get("task") or {}
        environment = _read_json(folder / ENVIRONMENT)
        indices = folder / INDICES
        trained_on = len(np.load(indices, allow_pickle=False)) if indices.is_file() else None
    except (OSError, ValueError, KeyError, yaml.YAMLError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder}: cannot be read ({' '.join(str(error).split())})") from None
    if not abs(top1 - 100 * right.mean()) <= LARGEST_MISMATCH:
        raise UserError(f"{folder}: top-1 {top1:.2f} in {RESULTS}, {100 * right.mean():.2f} in {SAMPLES}")
    rows = read_metrics(folder / METRICS_FILE)
    cell: Cell = {
        "labels": labels,
        "top1": top1,
        **{key: _finite(student.get(key)) for key in ("nll", "ece", "params", "minutes")},
        "teacher_top1": _finite(teacher.get("top1")),
        "agreement": _finite(results.get("agreement")),
        "steps": max((row["step"] for row in rows if "step" in row), default=None),
        "images_seen": max(_column(rows, "samples"), default=None),
        "train_images": trained_on,
        "test_images": len(targets),
        "test_labels": hashlib.sha256(targets.astype("<i8").tobytes()).hexdigest()[:16],
        "validation": task.get("validation") or 0.0,
        "curve": _curve(rows),
        "samples_per_second": _median(_column(rows, "samples_per_second")),
        "peak_memory_mb": max(_column(rows, "peak_memory_mb"), default=None),
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "commit": environment.get("commit"),
        "device": environment.get("device"),
        "packages": environment.get("packages"),
    }
    return cell, np.packbits(right)


def read_first(folder: Path) -> dict[str, Any] | None:
    """Of a run that cells need: top-1 on the images it held out (the test set where it held none), images
    seen, minutes and commit; None if it is not finished. Raises UserError if damaged."""
    if not (folder / RESULTS).is_file():
        return None
    try:
        student = _read_json(folder / RESULTS)["student"]
        kept = {key: _finite(float(student[key])) for key in ("top1", "minutes")}
        kept["params"] = int(student["params"])
        commit = _read_json(folder / ENVIRONMENT).get("commit")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: cannot be read ({' '.join(str(error).split())})") from None
    seen = max(_column(read_metrics(folder / METRICS_FILE), "samples"), default=None)
    return {**kept, "images_seen": seen, "commit": commit}


def _curve(rows: list[dict[str, Any]]) -> list[list[float]]:
    """[images seen, top-1] of every evaluation; one that does not say how many takes the last row's."""
    curve, seen = [], 0
    for row in rows:
        seen = row.get("samples") or seen
        if _finite(row.get("eval/top1")) is not None:
            curve.append([seen, round(row["eval/top1"], 4)])
    return curve


def _column(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _median(values: list[float]) -> float | None:
    return round(float(np.median(values)), 3) if values else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
