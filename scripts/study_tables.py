"""A study's finished cells as one table and one figure, for any metric of their results.json.

The `report` of a study file says which:

metric:   a number that every cell's results.json has under `student`, such as top1
better:   up or down; where it is said, each column's best mean is bold
rows:     axes whose labels name a row, and a line of the figure
columns:  the axis of the columns, and of the figure's abscissa. Over the axes left out, such as seeds, stand
          mean ± standard deviation and (how many)
baseline: whom each cell is compared with: `axis: label` of rows or columns (its other labels the same), or
          `teacher` or `scratch` in its own results.json

A difference is the mean over the pairs of runs that agree in all labels left out. Its 95 % interval is a
bootstrap over these pairs and over the items (images, say) of RUN/items.npz: arrays `student/METRIC` and
`teacher/METRIC` (N,), each item's score in the metric's unit and with it as their mean, and `index` (N,),
which item it is. All pairs of the same items get the same draws of them. Where a side has no such array, or
has other items, it is over pairs alone, and the table says so.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from study_file import Cell, Study, name_of

DRAWS, SEED, ROWS = 5_000, 0, 250
MISMATCH = 1e-3  # relative, between a metric and the mean of its items: float32's rounding, no more
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Score:
    """A metric of one run, and where they were kept its items' own (N,), in the order of their `index`."""

    value: float
    index: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    items: Floats = field(default_factory=lambda: np.empty(0))


Pair = tuple[Score, Score]
Groups = dict[tuple[str, str], list[tuple[Score, Score | None]]]


# --- what runs leave ---


def read_score(folder: Path, metric: str, who: str = "student") -> Score | None:
    """The metric of `who` in a run's folder; None if it has not finished, or has no such baseline. Raises
    ValueError where the metric is missing or no number, and where a file is damaged."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    found = results.get(who) if isinstance(results, dict) else None
    if found is None and who != "student":
        return None
    known = found if isinstance(found, dict) else {}
    value = known.get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        numbers = ", ".join(key for key, item in known.items() if isinstance(item, int | float))
        raise ValueError(f"{path}: no number {metric!r} of {who}; known: {numbers or 'none'}")
    return _with_items(float(value), folder / "items.npz", f"{who}/{metric}")


def _with_items(value: float, path: Path, name: str) -> Score:
    if not path.is_file():
        return Score(value)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = next(
                (each for each in file.files if each in (name, f"{each.partition('/')[0]}/{name}")), None
            )
            if found is None:
                return Score(value)
            index, items = file[f"{found.removesuffix(name)}index"], file[found].astype(np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if items.shape != index.shape or items.ndim != 1 or not items.size:
        raise ValueError(f"{path}: {name} has shape {items.shape}, index {index.shape}; they are (N,) both")
    diverged = math.isnan(items.mean()) and math.isnan(value)
    if not diverged and not math.isclose(items.mean(), value, rel_tol=MISMATCH, abs_tol=MISMATCH):
        raise ValueError(f"{path}: the mean of {name} is {items.mean():g}, results.json says {value:g}")
    order = np.argsort(index, kind="stable")
    return Score(value, index[order].astype(np.int64), items[order])


def groups(study: Study, cells: Iterable[Cell]) -> Groups:
    """(row, column) -> each finished cell there and its counterpart in the baseline, where that has finished
    and is another run."""
    report = study.report
    metric, baseline = report["metric"], report.get("baseline")
    found: Groups = {}
    for cell in cells:
        if (own := read_score(study.root / name_of(cell), metric)) is None:
            continue
        other = None
        if isinstance(baseline, dict):
            beside = cell | {axis: str(label) for axis, label in baseline.items()}
            other = read_score(study.root / name_of(beside), metric) if beside != cell else None
        elif baseline:
            other = read_score(study.root / name_of(cell), metric, baseline)
        row = " ".join(cell[axis] for axis in report["rows"])
        found.setdefault((row, cell[report["columns"]]), []).append((own, other))
    return found


# --- the interval ---


def interval(pairs: list[Pair]) -> tuple[float, float, str] | None:
    """95 % interval of the mean difference of pairs, and what it is over where that is not pairs and items.

    None of one pair without items, of which nothing is known.
    """
    items = all(a.index.size and np.array_equal(a.index, b.index) for a, b in pairs)
    if len(pairs) == 1 and not items:
        return None
    if items:
        gaps = np.stack([_redrawn(a.index, a.items - b.items) for a, b in pairs], 1)
    else:
        gaps = np.tile([a.value - b.value for a, b in pairs], (DRAWS, 1))
    drawn = np.random.default_rng(SEED).integers(0, len(pairs), gaps.shape)
    low, high = np.quantile(np.take_along_axis(gaps, drawn, 1).mean(1), [0.025, 0.975])
    return float(low), float(high), "items alone" if len(pairs) == 1 else "" if items else "runs alone"


def _redrawn(index: npt.NDArray[np.int64], gaps: Floats) -> Floats:
    """(DRAWS,) means of the gaps (N,) of items drawn with replacement: which ones is the index's own."""
    times = _times(len(index), zlib.crc32(index.tobytes()))
    parts = (times[start : start + ROWS].astype(np.float64) @ gaps for start in range(0, DRAWS, ROWS))
    return np.concatenate(list(parts)) / len(gaps)


@functools.lru_cache(maxsize=1)
def _times(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """How often each of `count` items is drawn (DRAWS, count), each draw `count` with replacement."""
    generator = np.random.default_rng([SEED, seed])
    times = np.empty((DRAWS, count), np.uint8)
    for row in times:
        row[:] = np.bincount(generator.integers(0, count, count), minlength=count)
    return times


# --- the table ---


def tabulate(study: Study, cells: Iterable[Cell]) -> str:
    """A Markdown table of these cells, and below it what its differences are."""
    report, found = study.report, groups(study, cells)
    lines, columns = _labels(study, found)
    means = {key: statistics.fmean(own.value for own, _ in scores) for key, scores in found.items()}
    digits, better = _digits(means.values()), report.get("better")
    rows = [[report["metric"], *columns], *([line] for line in lines)]
    for column in columns:
        rivals = [means[line, column] for line in lines if (line, column) in means]
        best = (max if better == "up" else min)(rivals) if better and len(rivals) > 1 else None
        for row in rows[1:]:
            key = row[0], column
            row.append(_shown(found[key], digits, means[key] == best) if key in found else "-")
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    table = "\n".join([head, "|---" * len(rows[0]) + "|", *body])
    return f"{table}\n\n{_legend(report['baseline'])}" if report.get("baseline") else table


def _labels(study: Study, found: Groups) -> tuple[list[str], list[str]]:
    """The rows in the order in which they were found, and the columns in the study's."""
    lines = list(dict.fromkeys(row for row, _ in found))
    ran = {column for _, column in found}
    return lines, [label for label in study.axes[study.report["columns"]] if label in ran]


def _legend(baseline: Any) -> str:
    against = baseline
    if isinstance(baseline, dict):
        against = ", ".join(f"{axis} {label}" for axis, label in baseline.items())
    return (
        f"Mean ± standard deviation (runs); difference to {against} [95 % interval: {DRAWS:,} draws with "
        "replacement of pairs of runs and of items; runs alone: no scores of the same items were kept; items "
        "alone: one pair]. Of few runs an interval is too narrow where runs differ more than items do."
    )


def _shown(scores: list[tuple[Score, Score | None]], digits: int, best: bool) -> str:
    """`**77.05** ± 0.20 (5); +1.16 [+0.47 to +1.85]`"""
    values = [own.value for own, _ in scores]
    mean = f"{statistics.fmean(values):.{digits}f}"
    text = f"**{mean}**" if best else mean
    text += f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    text += f" ({len(values)})"
    pairs = [(own, other) for own, other in scores if other is not None]
    if not pairs:
        return text
    text += f"; {statistics.fmean(a.value - b.value for a, b in pairs):+.{digits}f}"
    if (found := interval(pairs)) is None:
        return f"{text} [one pair]"
    low, high, over = found
    notes = [over] * bool(over) + [f"{len(pairs)} pairs"] * (1 < len(pairs) < len(values))
    return f"{text} [{', '.join([f'{low:+.{digits}f} to {high:+.{digits}f}', *notes])}]"


def _digits(values: Iterable[float]) -> int:
    """Decimals that show the largest value to four figures."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(8, max(0, 3 - math.floor(math.log10(largest)))) if largest else 2


# --- the figure ---


def draw(study: Study, cells: Iterable[Cell], path: Path) -> None:
    """The same means as a PNG: one line a row, a mark a column at even distances, bars of one deviation."""
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"text.parse_math": False}):  # a label's dollar is a dollar
        figure_of(study, cells).savefig(path, dpi=150, metadata={"Software": None})


def figure_of(study: Study, cells: Iterable[Cell]) -> Any:
    from matplotlib.figure import Figure

    report, found = study.report, groups(study, cells)
    lines, columns = _labels(study, found)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot(xlabel=report["columns"], ylabel=report["metric"])
    for place, line in enumerate(lines):
        points = [(at, found[line, label]) for at, label in enumerate(columns) if (line, label) in found]
        values = [[own.value for own, _ in scores] for _, scores in points]
        axes.errorbar(
            [at + 0.02 * (place - len(lines) / 2) for at, _ in points],  # bars side by side
            [statistics.fmean(each) for each in values],
            [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values],
            label=line, marker="osD^vPX"[place % 7], linestyle=("-", "--", ":")[place // 10 % 3], capsize=2,
        )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns)
    axes.grid(color="#E4E4E4")
    if lines:
        figure.legend(loc="outside right upper", frameon=False)
    return figure
