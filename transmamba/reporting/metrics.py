"""results.json: the numbers of a finished run, with what it takes to show them without its task."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.task import Metric
from ..errors import UserError

RESULTS_FILE = "results.json"
# the models of a run in the order in which tables name them
MODELS = ("teacher", "student", "scratch")
AGREEMENT, DIFFERENCE = "agreement", "difference"
MISSING = "–"

COSTS = (
    Metric(key="params", label="parameters", form="{:,.0f}", better="down"),
    Metric(key="samples_per_second", label="samples/s", form="{:,.0f}"),
    Metric(key="peak_memory_mb", label="peak MiB", form="{:,.0f}", better="down"),
    Metric(key="minutes", label="minutes", form="{:.1f}", better="down"),
)


def write_results(
    folder: Path,
    results: Mapping[str, Any],
    metrics: Sequence[Metric],
    splits: Mapping[str, str] | None = None,
) -> Path:
    """Writes results.json, whole or not at all: its presence says that a run is finished.

    results: each model's numbers by `Metric.key`, and of student and teacher `agreement` and `difference`;
        numbers that are not finite become null
    metrics: of the task, saved under `metrics`, so that whoever reads the results can show them
    splits:  the names of the `watched` and the `final` split, saved as `splits`
    """
    content = as_saved(_finite(results), metrics, splits)
    path = Path(folder) / RESULTS_FILE
    partial = path.with_name(f"{RESULTS_FILE}.partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def as_saved(
    results: Mapping[str, Any], metrics: Sequence[Metric], splits: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Results with what results.json says beside them."""
    content = {**results, "metrics": [dataclasses.asdict(metric) for metric in metrics]}
    return content | ({"splits": dict(splits)} if splits else {})


def read_results(path: Path) -> dict[str, Any]:
    """What a results.json holds, of runs of any age; null becomes nan. Raises UserError for a torn file."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; write the folder of a finished run") from None
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); delete it and run again") from None
    if not isinstance(results, dict):
        raise UserError(f"{path}: holds no results but {type(results).__name__}; delete it and run again")
    return as_written_today(results)


def as_written_today(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results of earlier versions in today's words: `images_per_second`, an agreement that was a number."""
    found: dict[str, Any] = {}
    for name, values in results.items():
        if name == AGREEMENT and isinstance(values, int | float):
            values = {AGREEMENT: values}
        if not isinstance(values, Mapping):
            found[name] = values
            continue
        row = {key: math.nan if value is None else value for key, value in values.items()}
        if "images_per_second" in row:
            row["samples_per_second"] = row.pop("images_per_second")
        found[name] = row
    return found


def metrics_of(results: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The task's metrics as results.json names them. Earlier runs name none: they were image classifiers'."""
    saved = results.get("metrics")
    if not saved:
        from ..evaluation.classification import ClassificationEvaluator

        return ClassificationEvaluator.METRICS
    known = {field.name for field in dataclasses.fields(Metric)}
    return tuple(Metric(**{key: value for key, value in row.items() if key in known}) for row in saved)


def headline(metrics: Sequence[Metric]) -> Metric | None:
    """What a run is about: the first that says so, else the first."""
    return next((metric for metric in metrics if metric.headline), metrics[0] if metrics else None)


def models_of(results: Mapping[str, Any]) -> list[str]:
    """The models that have results, in the order of tables."""
    return [name for name in MODELS if results.get(name)]


def value_of(results: Mapping[str, Any], model: str, metric: Metric) -> float | None:
    """A model's number; what student and teacher agree on stands with the student."""
    value = (results.get(model) or {}).get(metric.key)
    if value is None and model == "student":
        value = (results.get(AGREEMENT) or {}).get(metric.key)
    return value


def written(metric: Metric, value: float | None) -> str:
    """A cell of a table."""
    return MISSING if value is None else metric.form.format(value)


def change(metric: Metric, value: float) -> str:
    """A difference with its sign."""
    return ("+" if value >= 0 else "") + metric.form.format(value)


def difference_cells(metric: Metric, found: Mapping[str, Any] | None) -> tuple[str, str]:
    """A paired difference (the fields of `compare.Difference`) in the metric's unit, and the ratio in %, each
    with its interval."""
    if not found:
        return MISSING, MISSING
    mean, low, high = (change(metric, found[key]) for key in ("mean", "low", "high"))
    apart = f"{mean} ({low} to {high})"
    if found.get("ratio") is None:
        return apart, MISSING
    ratio, low, high = (f"{100 * found[key]:.1f}" for key in ("ratio", "ratio_low", "ratio_high"))
    return apart, f"{ratio} ({low} to {high})"


def difference_columns(
    results: Mapping[str, Any], metrics: Iterable[Metric], student: str = "student"
) -> list[tuple[str, list[str]]]:
    """(head, a cell a metric) of how student and teacher differ, with 95 % intervals; none where results say
    nothing of it."""
    known = results.get(DIFFERENCE) or {}
    cells = [difference_cells(metric, known.get(metric.key)) for metric in metrics]
    heads = (f"{student} - teacher [95 %]", f"{student} / teacher % [95 %]")
    columns = [(head, [pair[place] for pair in cells]) for place, head in enumerate(heads)]
    return [(head, column) for head, column in columns if any(cell != MISSING for cell in column)]


def rows(
    results: Mapping[str, Any], metrics: Sequence[Metric], models: Iterable[str] | None = None
) -> list[tuple[Metric, list[float | None]]]:
    """The metrics and costs that any of the models has, with the number of each."""
    names = models_of(results) if models is None else list(models)
    found = [(metric, [value_of(results, name, metric) for name in names]) for metric in (*metrics, *COSTS)]
    return [(metric, values) for metric, values in found if any(value is not None for value in values)]


def _finite(value: Any) -> Any:
    """The same in what JSON can hold: null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, np.generic):  # an evaluator's own
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
