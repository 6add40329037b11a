"""README.md of a student folder: what it is, how to load it, what it was taught and how well it learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..core.card import Card
from .metrics import as_written_today, difference_columns, metrics_of, models_of, rows, written
from .pages import render_template
from .run_data import final_split, part_label


def write_model_card(
    folder: Path, card: Card, *, results: Mapping[str, Any], config: Mapping[str, Any]
) -> Path:
    """Writes README.md beside the weights in `folder`, which must exist.

    results: results.json of the run, with the task's `metrics`; may be empty
    config:  the resolved recipe (teacher, student, task, stages); may be empty
    """
    page = Path(folder) / "README.md"
    page.write_text(render_model_card(card, results=results, config=config), encoding="utf-8")
    return page


def render_model_card(card: Card, *, results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The card, from values alone. A run without a teacher claims no distillation."""
    results = as_written_today(results)
    task = config.get("task") or {}
    teacher = _public(part_label(config.get("teacher"), ""))
    found = rows(results, metrics_of(results))
    apart = difference_columns(results, [metric for metric, _ in found])
    # Markdown, not HTML: escaping would spoil it, and the values are the user's own.
    return render_template(
        "model_card.md.jinja",
        html=False,
        front=yaml.safe_dump(_front(card, bool(teacher)), sort_keys=False).strip(),
        card=card,
        teacher=teacher,
        student=part_label(config.get("student"), "Mamba student"),
        data=_data(task.get("data") if isinstance(task, Mapping) else None),
        fraction=task.get("fraction") if isinstance(task, Mapping) else None,
        stages=[_stage(index, stage) for index, stage in enumerate(config.get("stages") or [])],
        models=models_of(results),
        apart=[head for head, _ in apart],
        metrics=[
            (_cell(metric.label), [*(written(metric, value) for value in row), *more])
            for (metric, row), *more in zip(found, *(column for _, column in apart), strict=True)
        ],
        split=final_split(config, results),
    )


def _front(card: Card, distilled: bool) -> dict[str, Any]:
    """What the Hub reads. A licence that is not known is left out: a wrong one is a promise."""
    tags = [card.pipeline_tag, *(["mamba", "transmamba", "distillation"] if distilled else ["transmamba"])]
    front: dict[str, Any] = {"license": card.licence} if card.licence else {}
    front |= {"library_name": card.library, "pipeline_tag": card.pipeline_tag, "tags": tags}
    return front | ({"base_model": card.base_model} if card.base_model else {})


def _data(data: Any) -> str:
    """`image_folder (root: pets)`: the reader and its options."""
    if not isinstance(data, Mapping):
        return _cell(data) if data else ""
    options = [
        f"{key}: {_public(value)}"
        for key, value in data.items()
        if key != "name" and value not in (None, "", [])
    ]
    return _cell(f"{data.get('name', 'data')}" + (f" ({', '.join(options)})" if options else ""))


def _stage(index: int, stage: Mapping[str, Any]) -> tuple[str, str, str]:
    """(name, losses with their weights, all other settings) of a stage, as cells of a table."""
    losses = []
    for loss in stage.get("losses") or []:
        weight = loss.get("weight") if isinstance(loss, Mapping) else None
        losses.append(
            part_label(loss, "loss") + (f" × {weight:g}" if isinstance(weight, int | float) else "")
        )
    settings = [
        f"{key} {value}"
        for key, value in stage.items()
        if key not in ("name", "losses") and isinstance(value, str | int | float) and value != ""
    ]
    own = stage.get("task") or {}  # of its data
    settings += [f"task.{key} {_data(value) if key == 'data' else value}" for key, value in own.items()]
    return _cell(stage.get("name") or f"stage {index}"), _cell(", ".join(losses)), _cell(", ".join(settings))


def _public(value: Any) -> str:
    """A path on the author's machine says nothing to readers of a card but its last name."""
    text = str(value)
    return Path(text).name if text.startswith(("/", "~", "./", "../")) else text


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
