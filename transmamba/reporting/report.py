"""One self-contained HTML page for a run: teacher beside student, curves, similarities, examples, cost.

Whatever a run has not written is left out, and the page says so. What is shown follows from the metrics,
exhibits and samples that the run's task left: no task is known here. Charts are inline SVG whose text takes
the page's colour, so that one file serves light and dark screens without a single request.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image

from ..core.task import Listing, Matrix, Metric, Sample
from ..errors import UserError
from .charts import Rows, Source, draw, matrix, panels, similarity, terms_together
from .figure import SCRATCH, STYLE
from .metrics import (
    AGREEMENT,
    DIFFERENCE,
    change,
    difference_columns,
    headline,
    models_of,
    rows,
    value_of,
    written,
)
from .pages import provenance, render_template, write_page
from .run_data import RunData, count, folder_of_run, part_label, read_run

# rows of a listing that are seen without a click
SHOWN_ROWS = 12


def write_report(run: Path, output: Path | None = None) -> Path:
    """Writes report.html into the run folder, or `output`. Raises UserError if the folder is missing, a file
    damaged, nothing measured yet, or nothing can be written there."""
    run = folder_of_run(run)
    page = run / "report.html" if output is None else Path(output).expanduser()
    data = read_run(run)
    if not (data.results or data.rows or data.subclone):
        raise UserError(f"{run}: this run has measured nothing yet; report it when it has begun")
    return write_page(page, render(data))


def render(run: RunData) -> str:
    """The page, from values alone."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        sections: dict[str, Any] = {
            "curves": _curves(run),
            "similarity": similarity(run.rows),
            "exhibits": {name: _exhibits(shown, name) for name, shown in run.exhibits.items() if shown},
        }
    absent = {
        "results.json (metrics)": not run.results,
        "metrics.jsonl (curves, similarity, cost)": not run.rows,
        "samples.npz (exhibits, examples)": not run.samples and not run.exhibits,
        "subclone.json (copied weights)": not run.subclone,
        "config.yaml": not run.config,
        "environment.json (date, commit, machine)": not run.environment,
    }
    if not run.trained:
        absent = {}
    return render_template(
        "report.html.jinja",
        html=True,
        name=run.name,
        teacher=part_label(run.config.get("teacher"), "" if run.config else "teacher"),
        student=part_label(run.config.get("student"), "student"),
        tiles=_tiles(run.results, run.metrics, run.called.capitalize()),
        table=_table(run.results, run.metrics),
        examples=_examples(run.samples, run.called),
        called={"student": run.called, "scratch": "from scratch"},
        cost=_cost(run.rows),
        provenance=provenance(run.environment),
        split=run.final_split,
        subclone=run.subclone,
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
        absent=[name for name, missing in absent.items() if missing],
        **sections,
    )


def _curves(run: RunData) -> list[tuple[str, Any]]:
    student = Source("student", run.rows)
    sources = [student, Source("from scratch", run.scratch_rows, SCRATCH)]
    metric = headline(run.metrics)
    level = None if metric is None else value_of(run.results, "teacher", metric)
    loss, *others = panels(sources, metric, run.watched_split, level)
    return draw([loss, terms_together(student), *others], run.rows)


# --- numbers ---


def _tiles(
    results: Mapping[str, Any], metrics: Sequence[Metric], who: str = "Student"
) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the few numbers that a run is about."""
    student, teacher = results.get("student") or {}, results.get("teacher") or {}
    metric, tiles = headline(metrics), []
    if metric is not None and metric.key in student:
        gap = ""
        if metric.key in teacher:
            gap = f"{change(metric, student[metric.key] - teacher[metric.key])} to the teacher"
            if apart := (results.get(DIFFERENCE) or {}).get(metric.key):
                gap += f" ({change(metric, apart['low'])} to {change(metric, apart['high'])})"
        tiles.append((f"{who} {metric.label}", written(metric, student[metric.key]), gap))
    if metric is not None and metric.key in teacher:
        tiles.append((f"Teacher {metric.label}", written(metric, teacher[metric.key]), ""))
    for agreed in metrics:
        if (value := (results.get(AGREEMENT) or {}).get(agreed.key)) is not None:
            tiles.append((agreed.label, written(agreed, value), "student and teacher"))
    if "params" in student:
        share = f"{100 * student['params'] / teacher['params']:.0f} %" if teacher.get("params") else ""
        note = f"{share} of the teacher" if share else ""
        tiles.append((f"{who} parameters", count(student["params"]), note))
    if "minutes" in student:
        tiles.append(("Training", f"{student['minutes']:.1f} min", ""))
    return tiles


def _table(results: Mapping[str, Any], metrics: Sequence[Metric]) -> dict[str, Any]:
    """`models` and, of each number that any of them has, its label and the cells; `apart`, in the same order:
    how student and teacher differ, as (head, cells)."""
    found = rows(results, metrics)
    return {
        "models": models_of(results),
        "rows": [(metric.label, [written(metric, value) for value in values]) for metric, values in found],
        "apart": difference_columns(results, [metric for metric, _ in found]),
    }


def _cost(logged: Rows) -> list[tuple[str, str]]:
    def column(key: str) -> list[float]:
        return [row[key] for row in logged if row.get(key) is not None]

    cost = []
    if seconds := column("seconds"):
        longest = max(seconds)
        cost.append(("Time", f"{longest / 60:.1f} min" if longest >= 60 else f"{longest:.1f} s"))
    if samples := column("samples"):
        cost.append(("Samples seen", count(max(samples))))
    if rates := column("samples_per_second"):
        cost.append(("Samples per second (median)", f"{np.median(rates):,.0f}"))
    if waits := column("data_wait"):
        cost.append(("Waiting for data (mean share of a step)", f"{100 * np.mean(waits):.1f} %"))
    if memory := column("peak_memory_mb"):
        cost.append(("Peak memory", f"{max(memory):,.0f} MiB"))
    return cost


# --- exhibits and examples ---


def _exhibits(shown: Sequence[Matrix | Listing], model: str) -> list[dict[str, Any]]:
    """Matrices drawn, listings with their first rows and the rest."""
    found: list[dict[str, Any]] = []
    for number, each in enumerate(shown):
        if isinstance(each, Matrix):
            found.append({"title": each.title, "svg": matrix(each, f"exhibit-{model}-{number}")})
            continue
        numeric = [
            bool(each.rows) and all(re.fullmatch(r"[-+]?[\d,.]+ ?%?", row[place]) for row in each.rows)
            for place in range(len(each.columns))
        ]
        parts = {"head": each.rows[:SHOWN_ROWS], "rest": each.rows[SHOWN_ROWS:]}
        found.append({"title": each.title, "columns": each.columns, "numeric": numeric, **parts})
    return found


def _examples(samples: Sequence[Sample], called: str = "student") -> list[tuple[str, list[dict[str, Any]]]]:
    """(heading, cards), in the order in which the groups come."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        said = [replace(each, who=called) if each.who == "student" else each for each in sample.answers]
        card: dict[str, Any] = {"label": sample.label, "text": sample.text, "answers": said}
        if sample.picture is not None:
            card |= {"uri": _data_uri(sample.picture), "small": sample.picture.shape[0] < 96}
        groups.setdefault(re.sub(r"\bstudent\b", called, sample.group), []).append(card)
    return [(title[:1].upper() + title[1:], cards) for title, cards in groups.items()]


def _data_uri(picture: npt.NDArray[np.uint8]) -> str:
    """The (H, W, 3) picture inline: exact where it is small, JPEG where PNG would swell the page."""
    kind = "PNG" if picture.shape[0] < 96 else "JPEG"
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
