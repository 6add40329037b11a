"""What a run has written, read for its report, its comparison with others and its student's card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..core.task import Listing, Matrix, Metric, Sample
from ..ecosystems.folders import STUDENT_FOLDER
from ..errors import UserError
from .earlier import converted, is_earlier
from .metrics import RESULTS_FILE, metrics_of, read_results
from .samples import ITEMS_FILE, SAMPLES_FILE, Items, read_arrays, read_items, unpacked
from .tracking import METRICS_FILE, read_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """What a run folder holds; an absent file is an empty value.

    results:  each model's numbers, by `Metric.key`; `metrics` says how they are called
    rows, scratch_rows: of metrics.jsonl, of the run and of the one from scratch
    exhibits: by model
    items:    of each evaluator that scored items
    trained:  whether it is a run's; else that of an evaluation alone, which has no training to show
    called:   what the page calls its student
    """

    name: str
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Sequence[dict[str, Any]] = ()
    scratch_rows: Sequence[dict[str, Any]] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    samples: Sequence[Sample] = ()
    exhibits: Mapping[str, Sequence[Matrix | Listing]] = dataclasses.field(default_factory=dict)
    items: Sequence[Items] = ()
    subclone: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trained: bool = True
    called: str = "student"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return metrics_of(self.results)

    @property
    def watched_split(self) -> str:
        return watched_split(self.config, self.results)

    @property
    def final_split(self) -> str:
        return final_split(self.config, self.results)


def folder_of_run(path: Path) -> Path:
    """RUN, given RUN or RUN/student. Raises UserError if it is no folder."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; write the output_dir of a run")
    parent = path.resolve().parent
    run = parent if path.resolve().name == STUDENT_FOLDER and (parent / METRICS_FILE).is_file() else path
    if not any((run / name).is_file() for name in (METRICS_FILE, RESULTS_FILE, "config.yaml")):
        raise UserError(f"{path}: holds no run; write the output_dir of a run")
    return run


def read_run(run: Path) -> RunData:
    """Reads all that a report can show, of runs of any age. Raises UserError naming a file that cannot be
    read."""

    def rows(path: Path) -> list[dict[str, Any]]:
        return read_metrics(path) if path.is_file() else []

    config = _mapping(run / "config.yaml", yaml.safe_load)
    results = read_results(run / RESULTS_FILE) if (run / RESULTS_FILE).is_file() else {}
    samples, exhibits, items = _evaluated(run, final_split(config, results))
    return RunData(
        name=run.resolve().name,
        results=results,
        rows=rows(run / METRICS_FILE),
        scratch_rows=rows(run / "scratch" / METRICS_FILE),
        config=config,
        samples=samples,
        exhibits=exhibits,
        items=items,
        subclone=_mapping(run / "subclone.json", json.loads),
        environment=_mapping(run / "environment.json", json.loads),
    )


def _evaluated(run: Path, split: str) -> tuple[list[Sample], dict[str, list[Matrix | Listing]], list[Items]]:
    """Samples, exhibits by model and scores of items."""
    path = run / SAMPLES_FILE
    arrays, items = read_arrays(path), read_items(run / ITEMS_FILE)
    if not arrays:
        return [], {}, items
    if is_earlier(arrays):
        return converted(arrays, split)
    try:
        return (*unpacked(arrays), items)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: holds no samples ({error}); delete it, or evaluate again") from None


def part_label(part: Any, default: str) -> str:
    """What to call a part of a config: the model it names, else its own name."""
    if isinstance(part, Mapping):
        return str(part.get("model") or part.get("name") or default)
    return str(part) if part else default


def watched_split(config: Mapping[str, Any], results: Mapping[str, Any] | None = None) -> str:
    """What a run was evaluated on while it trained: what its results say, or else its recipe: the share of
    the training data that was held out, if any."""
    said = ((results or {}).get("splits") or {}).get("watched")
    task = config.get("task")
    return said or ("validation" if isinstance(task, Mapping) and task.get("validation") else "test")


def final_split(config: Mapping[str, Any], results: Mapping[str, Any] | None = None) -> str:
    """What a run's results were measured on: what they say, or the recipe, or the split it was watched on."""
    said = ((results or {}).get("splits") or {}).get("final")
    task = config.get("task")
    named = task.get("final_split") if isinstance(task, Mapping) else None
    return said or named or watched_split(config, results)


def _mapping(path: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read ({reason}); delete it or run again") from None
    return data if isinstance(data, Mapping) else {}


def count(value: float) -> str:
    """`1.23 M` for 1,234,567."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
