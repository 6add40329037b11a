"""README.md of a student folder: what it is, how to load it, what it was taught and how well it learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..ecosystems.folders import read_model_config
from .run_data import METRICS, final_split, part_label

TRANSFORMERS, TIMM = "transformers", "timm"


def write_model_card(
    folder: Path,
    *,
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    base_model: str | None = None,
) -> Path:
    """Writes README.md beside the weights in `folder`, which must exist; its config.json tells who loads it.

    results: results.json of the run (teacher, student, scratch, agreement); may be empty
    config: the resolved recipe (teacher, student, task, stages); may be empty
    base_model: the teacher's repository on the Hub, if it has one
    """
    library = TRANSFORMERS if "model_type" in _model_config(Path(folder)) else TIMM
    text = render_model_card(results=results, config=config, base_model=base_model, library=library)
    card = Path(folder) / "README.md"
    card.write_text(text, encoding="utf-8")
    return card


def render_model_card(
    *,
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    base_model: str | None = None,
    library: str = TIMM,
) -> str:
    """The card, from values alone. A run without a teacher claims no distillation."""
    import jinja2  # here, for it is slow and only a card needs it

    task = config.get("task") or {}
    data = task.get("data") if isinstance(task, Mapping) else None
    teacher = _public(part_label(config.get("teacher"), ""))
    front: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": [
            "image-classification",
            *(["mamba", "transmamba", "distillation"] if teacher else ["transmamba"]),
        ],
    }
    front |= {"base_model": base_model} if base_model else {}
    # Markdown, not HTML: escaping would spoil it, and the values are the user's own.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.jinja").render(
        front=yaml.safe_dump(front, sort_keys=False).strip(),
        teacher=teacher,
        library=library,
        student=part_label(config.get("student"), "Mamba student"),
        data=_data(data),
        fraction=task.get("fraction") if isinstance(task, Mapping) else None,
        stages=[_stage(index, stage) for index, stage in enumerate(config.get("stages") or [])],
        models=[name for name in ("teacher", "student", "scratch") if results.get(name)],
        metrics=_metrics(results),
        agreement=results.get("agreement"),
        split=final_split(config),
    )


def _model_config(folder: Path) -> Mapping[str, Any]:
    return read_model_config(folder) if (folder / "config.json").is_file() else {}


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
    return _cell(stage.get("name") or f"stage {index}"), _cell(", ".join(losses)), _cell(", ".join(settings))


def _metrics(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(label, one cell a model) of each metric that any model has."""
    models = [results[name] for name in ("teacher", "student", "scratch") if results.get(name)]
    return [
        (label, ["–" if model.get(key) is None else form(model[key]) for model in models])
        for key, label, form in METRICS
        if any(model.get(key) is not None for model in models)
    ]


def _public(value: Any) -> str:
    """A path on the author's machine says nothing to readers of a card but its last name."""
    text = str(value)
    return Path(text).name if text.startswith(("/", "~", "./", "../")) else text


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
