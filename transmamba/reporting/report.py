"""One self-contained HTML page for a run: teacher beside student, curves, similarities, examples, cost.

Whatever a run has not written is left out, and the page says so. Charts are inline SVG whose text takes the
page's colour, so that one file serves light and dark screens without a single request.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from .charts import STYLE, confusion, curves, similarity
from .run_data import (
    METRICS,
    RunData,
    class_names,
    count,
    final_split,
    folder_of_run,
    part_label,
    read_run,
)

MAX_EXAMPLES = 12


def write_report(run: Path) -> Path:
    """Writes report.html into the run folder. Raises UserError if the folder is missing or a file damaged."""
    run = folder_of_run(run)
    page = run / "report.html"
    page.write_text(render(read_run(run)), encoding="utf-8")
    return page


def render(run: RunData) -> str:
    """The page, from values alone."""
    import jinja2
    import matplotlib

    with matplotlib.rc_context(STYLE):
        sections: dict[str, Any] = {
            "curves": curves(run),
            "similarity": similarity(run.rows),
            "confusion": confusion(run.samples),
        }
    sections |= {"table": _table(run.results), "examples": _examples(run.samples), "cost": _cost(run.rows)}
    absent = {
        "results.json (metrics)": not run.results,
        "metrics.jsonl (curves, similarity, cost)": not run.rows,
        "samples.npz (confusion, examples)": not run.samples,
        "subclone.json (copied weights)": not run.subclone,
        "config.yaml": not run.config,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        name=run.name,
        teacher=part_label(run.config.get("teacher"), "" if run.config else "teacher"),
        student=part_label(run.config.get("student"), "student"),
        tiles=_tiles(run.results),
        split=final_split(run.config),
        subclone=run.subclone,
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
        absent=[name for name, missing in absent.items() if missing],
        **sections,
    )


# --- numbers ---


def _tiles(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, small print) of the few numbers that a run is about."""
    student, teacher = results.get("student") or {}, results.get("teacher") or {}
    tiles = []
    if "top1" in student:
        gap = f"{student['top1'] - teacher['top1']:+.2f} points to the teacher" if "top1" in teacher else ""
        tiles.append(("Student top-1", f"{student['top1']:.2f} %", gap))
    if "top1" in teacher:
        tiles.append(("Teacher top-1", f"{teacher['top1']:.2f} %", ""))
    if results.get("agreement") is not None:
        tiles.append(("Agreement", f"{results['agreement']:.2f} %", "same top-1 answer as the teacher"))
    if "params" in student:
        share = (
            f"{100 * student['params'] / teacher['params']:.0f} % of the teacher"
            if teacher.get("params")
            else ""
        )
        tiles.append(("Student parameters", count(student["params"]), share))
    if "minutes" in student:
        tiles.append(("Training", f"{student['minutes']:.1f} min", ""))
    return tiles


def _table(results: Mapping[str, Any]) -> dict[str, Any]:
    """`models` and, per metric that any of them has, its label, the cells and which of them is best."""
    models = {name: dict(results[name]) for name in ("teacher", "student", "scratch") if results.get(name)}
    if "student" in models and results.get("agreement") is not None:
        models["student"].setdefault("agreement", results["agreement"])
    rows = []
    for key, label, form in METRICS:
        values = [model.get(key) for model in models.values()]
        if any(value is not None for value in values):
            rows.append((label, ["–" if value is None else form(value) for value in values]))
    return {"models": list(models), "rows": rows}


def _cost(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    def column(key: str) -> list[float]:
        return [row[key] for row in rows if row.get(key) is not None]

    cost = []
    if seconds := column("seconds"):
        cost.append(
            ("Time", f"{max(seconds) / 60:.1f} min" if max(seconds) >= 60 else f"{max(seconds):.1f} s")
        )
    if samples := column("samples"):
        cost.append(("Samples seen", count(max(samples))))
    if rates := column("samples_per_second"):
        cost.append(("Samples per second (median)", f"{np.median(rates):,.0f}"))
    if waits := column("data_wait"):
        cost.append(("Waiting for data (mean share of a step)", f"{100 * np.mean(waits):.1f} %"))
    if memory := column("peak_memory_mb"):
        cost.append(("Peak memory", f"{max(memory):,.0f} MB"))
    return cost


# --- examples ---


def _examples(samples: Mapping[str, np.ndarray]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, cards) of images on which student and teacher differ, both err, or both are right."""
    if not {"images", "image_index", "labels", "student_pred", "teacher_pred"} <= samples.keys():
        return []
    names = class_names(samples)
    groups: dict[str, list[dict[str, Any]]] = {
        "Student and teacher differ": [],
        "Both wrong": [],
        "Both right": [],
    }
    for image, index in zip(samples["images"], samples["image_index"], strict=True):
        label, student, teacher = (
            int(samples[key][index]) for key in ("labels", "student_pred", "teacher_pred")
        )
        title = "Both right" if student == label else "Both wrong"
        cards = groups["Student and teacher differ" if student != teacher else title]
        if len(cards) < MAX_EXAMPLES:
            answers = [
                ("student", names[student], student == label),
                ("teacher", names[teacher], teacher == label),
            ]
            cards.append(
                {
                    "uri": _data_uri(image),
                    "small": image.shape[0] < 96,
                    "label": names[label],
                    "answers": answers,
                }
            )
    return [(title, cards) for title, cards in groups.items() if cards]


def _data_uri(image: np.ndarray) -> str:
    """The (H, W, 3) image inline: exact where it is small, JPEG where PNG would swell the page."""
    kind = "PNG" if image.shape[0] < 96 else "JPEG"
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
