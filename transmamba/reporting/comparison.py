"""One page for several runs: their numbers side by side, how sure the differences are, their curves in one
chart, and what differs in their recipes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.task import Metric
from ..errors import UserError
from ..evaluation.compare import Difference, paired_difference
from .charts import Source, draw, panels, terms_apart
from .figure import SERIES, STYLE
from .metrics import MISSING, change, difference_cells, headline, models_of, rows, value_of, written
from .pages import provenance, render_template, write_page
from .run_data import RunData, folder_of_run, read_run

DRAWS = 2_000
# of a task's configuration: what decides which items a model is measured on
_SAME_ITEMS = ("name", "data", "validation", "split_seed")
# and on which items beside those; the metrics of these begin with that word
_BESIDE = ("zero_shot", "probe")


def write_comparison(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes comparison.html into the last run's folder, or `output`. Raises UserError as `write_report`
    does, and for fewer than two runs."""
    runs = _read(folders)
    page = folder_of_run(folders[-1]) / "comparison.html" if output is None else Path(output).expanduser()
    return write_page(page, render_comparison(runs))


def compared(folders: Sequence[Path]) -> dict[str, Any]:
    """`against`, the name of the first run, and of each other run by name its student's `difference` to the
    first one's, as results.json has that of a student to its teacher; or `why` there is none. Raises
    UserError as `write_comparison` does."""
    runs = _read(folders)
    names, metrics = _names(runs), _metrics(runs)
    rest: dict[str, Any] = {}
    for name, run in zip(names[1:], runs[1:], strict=True):
        found, why = paired(runs[0], run, metrics)
        apart = {key: dict(vars(difference)) for key, difference in found.items()}
        rest[name] = {"why": why} if why else {"difference": apart}
    return {"against": names[0], "runs": rest}


def _read(folders: Sequence[Path]) -> list[RunData]:
    if len(folders) < 2:
        raise UserError("a comparison needs two runs; write both folders: transmamba report RUN1 RUN2")
    return [read_run(folder_of_run(folder)) for folder in folders]


def _metrics(runs: Sequence[RunData]) -> tuple[Metric, ...]:
    """Of all runs, each key once."""
    known: dict[str, Metric] = {}
    for metric in (metric for run in runs for metric in run.metrics):
        known.setdefault(metric.key, metric)
    return tuple(known.values())


def render_comparison(runs: Sequence[RunData]) -> str:
    """The page, from values alone; every run is compared with the first."""
    import matplotlib

    names, metrics = _names(runs), _metrics(runs)
    with matplotlib.rc_context(STYLE):
        curves = _curves(runs, names, metrics)
    return render_template(
        "comparison.html.jinja",
        html=True,
        names=names,
        table=_table(runs, names, metrics),
        differences=[
            _differences(runs[0], run, names[0], name, metrics)
            for run, name in zip(runs[1:], names[1:], strict=True)
        ],
        curves=curves,
        configs=_aligned([dict(_leaves(run.config)) for run in runs]),
        machines=_aligned([dict(provenance(run.environment)) for run in runs], all_rows=True),
    )


def _names(runs: Sequence[RunData]) -> list[str]:
    """Each run's, numbered where two are called alike."""
    names = [run.name for run in runs]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def _table(runs: Sequence[RunData], names: Sequence[str], metrics: Sequence[Metric]) -> dict[str, Any]:
    """`runs`: (name, its models); `rows`: a label and the cells of all models of all runs."""
    found = [dict(rows(run.results, metrics)) for run in runs]
    order = [metric for metric, _ in rows(_merged(runs), metrics, ("student", "teacher", "scratch"))]
    shown = [models_of(run.results) for run in runs]
    cells = [
        [
            written(metric, value)
            for row, models in zip(found, shown, strict=True)
            for value in row.get(metric, [None] * len(models))
        ]
        for metric in order
    ]
    labels = [metric.label for metric in order]
    return {"runs": list(zip(names, shown, strict=True)), "rows": list(zip(labels, cells, strict=True))}


def _merged(runs: Sequence[RunData]) -> dict[str, Any]:
    """Results with every number that any run has."""
    merged: dict[str, Any] = {}
    for run in runs:
        for name, values in run.results.items():
            if isinstance(values, Mapping):
                merged[name] = {**merged.get(name, {}), **values}
    return merged


# --- how sure a difference is ---


def paired(a: RunData, b: RunData, metrics: Sequence[Metric]) -> tuple[dict[str, Difference], str]:
    """How the student of b differs from that of a, by `Metric.key`; or nothing, and why.

    Metrics of other data than the task's own are left out where the recipes name other such data.
    """
    if why := _not_comparable(a, b):
        return {}, why
    others = tuple(f"{key}_" for key in _BESIDE if _of_task(a, key) != _of_task(b, key))
    keys = [metric.key for metric in metrics if not metric.key.startswith(others)]
    found = {key: _paired(a, b, f"student/{key}") for key in keys}
    known = {key: difference for key, difference in found.items() if difference is not None}
    return known, "" if known else "they have no scores of the same items (items.npz)"


def _differences(
    a: RunData, b: RunData, a_name: str, b_name: str, metrics: Sequence[Metric]
) -> dict[str, Any]:
    """Of the students of two runs: a row a metric, or why there is none."""
    found, why = paired(a, b, metrics)
    shown = []
    for metric in (metric for metric in metrics if metric.key in found):
        values = [written(metric, value_of(run.results, "student", metric)) for run in (a, b)]
        shown.append((metric.label, *values, *_row(metric, found[metric.key])))
    return {"a": a_name, "b": b_name, "rows": shown, "why": why}


def _row(metric: Metric, found: Difference) -> tuple[str, str, str, str, str]:
    """(difference, interval, ratio with its interval, verdict, items)."""
    verdict = "not sure"
    if found.sure:
        verdict = "better" if (found.mean > 0) == (metric.better == "up") else "worse"
    interval = f"{change(metric, found.low)} to {change(metric, found.high)}"
    _, ratio = difference_cells(metric, vars(found))
    return change(metric, found.mean), interval, ratio, verdict, f"{found.items:,}"


def _paired(a: RunData, b: RunData, key: str) -> Difference | None:
    """Over the items that both runs scored; a metric is of one evaluator, whatever its place among them."""
    mine, other = (next((each for each in run.items if key in each.scores), None) for run in (a, b))
    if mine is None or other is None:
        return None
    pair = (mine.scores[key], mine.index, other.scores[key], other.index)
    return paired_difference(*pair, mine.cluster, draws=DRAWS)


def _of_task(run: RunData, key: str) -> Any:
    task = run.config.get("task")
    return task.get(key) if isinstance(task, Mapping) else None


def _not_comparable(a: RunData, b: RunData) -> str:
    """Why equal numbers do not mean equal items; empty where they do, as far as the recipes say."""
    if a.final_split != b.final_split:
        return f"one was measured on the {a.final_split} split, the other on the {b.final_split} split"
    tasks = [run.config.get("task") for run in (a, b)]
    if not all(isinstance(task, Mapping) for task in tasks):
        return ""
    one, other = ({key: task.get(key) for key in _SAME_ITEMS} for task in tasks)  # type: ignore[union-attr]
    changed = [f"task.{key}" for key in _SAME_ITEMS if one[key] != other[key]]
    return f"they were measured on different items ({', '.join(changed)})" if changed else ""


# --- curves and recipes ---


def _curves(
    runs: Sequence[RunData], names: Sequence[str], metrics: Sequence[Metric]
) -> list[tuple[str, Any]]:
    sources = [
        Source(name, run.rows, SERIES[number % len(SERIES)])
        for number, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    splits = list(dict.fromkeys(run.watched_split for run in runs))
    loss, *others = panels(sources, headline(metrics), " or ".join(splits))
    # without stages: each run has its own
    return draw([loss, *terms_apart(sources), *others], [])


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, value) of each leaf of a configuration, but for where the run lies."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and value:
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{number}")
    elif path != "output_dir":
        yield path, "none" if value is None else str(value)


def _aligned(columns: Sequence[Mapping[str, str]], all_rows: bool = False) -> list[tuple[str, list[str]]]:
    """(key, a cell for each column) of the keys in which they differ, or of all."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    found = [(key, [column.get(key, MISSING) for column in columns]) for key in keys]
    return [(key, cells) for key, cells in found if all_rows or len(set(cells)) > 1]
