"""One self-contained HTML page for a run: teacher beside student, curves, similarities, examples, cost.

Whatever a run has not written is left out, and the page says so. Charts are inline SVG whose text takes the
page's colour, so that one file serves light and dark screens without a single request.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from .errors import UserError
from .folders import STUDENT_FOLDER
from .tracking import METRICS_FILE, read_metrics

if TYPE_CHECKING:  # matplotlib is imported where it draws: who only converts a model need not wait for it
    from markupsafe import Markup
    from matplotlib.figure import Figure

STUDENT, TEACHER, SCRATCH = "#2f7fd6", "#d9822b", "#8b8f98"
SERIES = (STUDENT, TEACHER, "#2a9d74", "#b0569b", "#b59a1f", "#7a68d8", "#c8574f", SCRATCH)
# Colours that stand for the page's own in the SVG of matplotlib, which knows no CSS.
INK, RULE = "#010203", "#040506"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "transmamba",
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.01,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
MAX_POINTS = 500
MAX_EXAMPLES = 12
MAX_NAMED_CLASSES = 24

METRICS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("top1", "Top-1 accuracy", lambda value: f"{value:.2f} %"),
    ("top5", "Top-5 accuracy", lambda value: f"{value:.2f} %"),
    ("agreement", "Agreement with the teacher", lambda value: f"{value:.2f} %"),
    ("ece", "Calibration error (ECE)", lambda value: f"{value:.2f} %"),
    ("nll", "Negative log-likelihood", lambda value: f"{value:.3f}"),
    ("params", "Parameters", lambda value: _count(value)),
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


def write_report(run: Path) -> Path:
    """Writes report.html into the run folder. Raises UserError if the folder is missing or a file damaged."""
    run = run_folder(run)
    page = run / "report.html"
    page.write_text(render(read_run(run)), encoding="utf-8")
    return page


def run_folder(path: Path) -> Path:
    """RUN, given RUN or RUN/student. Raises UserError if it is no folder."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; write the output_dir of a run")
    parent = path.resolve().parent
    return parent if path.resolve().name == STUDENT_FOLDER and (parent / METRICS_FILE).is_file() else path


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


def render(run: RunData) -> str:
    """The page, from values alone."""
    import jinja2
    import matplotlib

    with matplotlib.rc_context(STYLE):
        sections: dict[str, Any] = {
            "curves": _curves(run),
            "similarity": _similarity(run.rows),
            "confusion": _confusion(run.samples),
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
        split=evaluated_split(run.config),
        subclone=run.subclone,
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True) if run.config else "",
        absent=[name for name, missing in absent.items() if missing],
        **sections,
    )


def part_label(part: Any, default: str) -> str:
    """What to call a part of a config: the model it names, else its own name."""
    if isinstance(part, Mapping):
        return str(part.get("model") or part.get("name") or default)
    return str(part) if part else default


def evaluated_split(config: Mapping[str, Any]) -> str:
    """What a run's results were measured on: a share of the training images where the recipe held one out."""
    task = config.get("task")
    return "validation" if isinstance(task, Mapping) and task.get("validation") else "test"


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
        tiles.append(("Student parameters", _count(student["params"]), share))
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
        cost.append(("Samples seen", _count(max(samples))))
    if rates := column("samples_per_second"):
        cost.append(("Samples per second (median)", f"{np.median(rates):,.0f}"))
    if waits := column("data_wait"):
        cost.append(("Waiting for data (mean share of a step)", f"{100 * np.mean(waits):.1f} %"))
    if memory := column("peak_memory_mb"):
        cost.append(("Peak memory", f"{max(memory):,.0f} MB"))
    return cost


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


# --- charts ---


def _curves(run: RunData) -> list[tuple[str, Markup]]:
    """(title, SVG) of loss, its terms, evaluation and learning rate against samples seen."""
    results, charts = run.results, []
    terms = sorted({key for row in run.rows for key in row if key.startswith("loss/")})
    lines = {
        "Loss": {"loss": (run.rows, "loss", STUDENT)},
        "Loss terms": {
            key.removeprefix("loss/"): (run.rows, key, SERIES[index % len(SERIES)])
            for index, key in enumerate(terms)
        },
        f"Top-1 on the {evaluated_split(run.config)} split": {
            "student": (run.rows, "eval/top1", STUDENT),
            "from scratch": (run.scratch_rows, "eval/top1", SCRATCH),
        },
        "Learning rate": {"lr": (run.rows, "lr", STUDENT)},
    }
    for title, group in lines.items():
        series = {label: (_series(rows, key), colour) for label, (rows, key, colour) in group.items()}
        series = {label: value for label, value in series.items() if len(value[0][0])}
        if series:
            evaluated = title.startswith("Top-1")
            level = (results.get("teacher") or {}).get("top1") if evaluated else None
            charts.append((title, _chart(title, series, _stages(run.rows), level, evaluated)))
    return charts


def _chart(
    title: str,
    series: Mapping[str, tuple[tuple[np.ndarray, np.ndarray], str]],
    stages: list[tuple[str, float, float]],
    teacher: float | None,
    marked: bool,
) -> Markup:
    from matplotlib.ticker import EngFormatter, NullFormatter

    figure, axes = _axes(height=2.4)
    for index, (name, start, end) in enumerate(stages if len(stages) > 1 else []):
        if index % 2 == 0:
            axes.axvspan(start, end, color=SCRATCH, alpha=0.13, linewidth=0)
        middle = (start + end) / 2
        axes.text(middle, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=8)
    for label, ((x, y), colour) in series.items():
        noisy = title.startswith("Loss") and len(x) > 60
        style: dict[str, Any] = {"color": colour, "marker": "o" if marked else "", "markersize": 3.5}
        if noisy:
            axes.plot(*_thinned(x, y), alpha=0.3, **style)
        axes.plot(*_thinned(x, _smooth(y) if noisy else y), label=label, **style)
    if teacher is not None:
        axes.axhline(teacher, color=TEACHER, linestyle="--", linewidth=1.2, label="teacher")
    values = np.concatenate([y for (_, y), _ in series.values()])
    if title.startswith("Loss") and values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("samples seen")
    if len(series) > 1 or teacher is not None:
        axes.legend(fontsize=8)
    return _svg(figure, title)


def _similarity(rows: list[dict[str, Any]]) -> list[tuple[str, Markup]]:
    """A heatmap (layer by samples seen) of cosine similarity for each loss and branch that logs it."""
    groups: dict[str, dict[int, str]] = {}
    for key in {key for row in rows for key in row}:
        match = re.fullmatch(r"similarity/(.+)/(\d+)(?:/(\w+))?", key)
        if match:
            name = match[1] + (f", {match[3]}" if match[3] else "")
            groups.setdefault(name, {})[int(match[2])] = key
    charts = []
    for name, layers in sorted(groups.items()):
        keys = [layers[layer] for layer in sorted(layers)]
        kept = [row for row in rows if any(row.get(key) is not None for key in keys)]
        if kept:
            kept = [kept[index] for index in _spread(len(kept), 160)]
            values = np.array([[row.get(key) for row in kept] for key in keys], dtype=float)
            heatmap = _heatmap(name, sorted(layers), _positions(rows, kept), values)
            charts.append((f"{name} (last mean {np.nanmean(values[:, -1]):.3f})", heatmap))
    return charts


def _heatmap(name: str, layers: list[int], x: np.ndarray, values: np.ndarray) -> Markup:
    """Cosine similarities (layers, len(x)); not a number where a layer was not logged."""
    from matplotlib.ticker import EngFormatter

    figure, axes = _axes(height=1.0 + 0.15 * min(len(layers), 24))
    edges = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:] + (len(x) == 1)])
    rows = np.arange(len(layers) + 1) - 0.5
    low = min(0.0, float(np.nanmin(values)))
    mesh = axes.pcolormesh(edges, rows, values, vmin=low, vmax=1.0, cmap="viridis", rasterized=True)
    axes.grid(False)
    ticks = range(0, len(layers), -(-len(layers) // 12))
    axes.set_yticks(ticks, [str(layers[tick]) for tick in ticks])
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel="samples seen", ylabel="layer")
    figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02).outline.set_visible(False)
    return _svg(figure, f"similarity-{name}")


def _confusion(samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The student's confusion matrix, rows normalised, and the pairs of classes it confuses most."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    if not {"labels", "student_pred"} <= samples.keys():
        return {}
    labels, predicted = samples["labels"].astype(int), samples["student_pred"].astype(int)
    names = _class_names(samples)
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # From nothing to the student's colour: the page shows through, whatever its theme.
    colours = LinearSegmentedColormap.from_list(
        "student", [(0.184, 0.498, 0.839, a) for a in (0.0, 0.35, 0.65, 1.0)]
    )
    size = 4.6 if len(names) > 5 else 3.2
    figure, axes = _axes(height=size, width=size)
    axes.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.grid(False)
    axes.set(xlabel="student's answer", ylabel="label")
    if len(names) <= MAX_NAMED_CLASSES:
        short = [name if len(name) <= 18 else name[:17] + "…" for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90 if max(map(len, short)) > 2 else 0, fontsize=8)
        axes.set_yticks(range(len(names)), short, fontsize=8)
    if len(names) <= 12:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8,
                          color="white" if share > 0.3 else INK)  # fmt: skip
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(wrong, axis=None)[::-1][:8]
    pairs = [
        (names[i], names[j], int(wrong[i, j]))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
    ]
    return {
        "svg": _svg(figure, "confusion"),
        "pairs": [pair for pair in pairs if pair[2]],
        "total": len(labels),
    }


def _axes(height: float, width: float = 5.4) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element that scales, takes the page's colours and shares no id with others."""
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    prefix = re.sub(r"\W+", "-", name.lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text).replace("url(#", f"url(#{prefix}-")
    text = re.sub(r'xlink:href="#', f'href="#{prefix}-', text).replace("xlink:href=", "href=")
    return Markup(text.replace(INK, "currentColor").replace(RULE, "var(--rule)"))


def _series(rows: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    kept = [row for row in rows if row.get(key) is not None]
    return _positions(rows, kept), np.array([row[key] for row in kept], dtype=float)


def _positions(rows: list[dict[str, Any]], kept: list[dict[str, Any]]) -> np.ndarray:
    """Samples seen at each kept row; one that does not say takes those of its step or the last one before."""
    seen = {row["step"]: row["samples"] for row in rows if row.get("samples") is not None}
    steps = sorted(seen)
    if not steps:
        return np.array([row["step"] for row in kept], dtype=float)
    found = np.searchsorted(steps, [row["step"] for row in kept], side="right") - 1
    return np.array([seen[steps[max(index, 0)]] if index >= 0 else 0 for index in found], dtype=float)


def _stages(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """(name, first, last samples seen) of each stage, in the order they ran."""
    spans: dict[Any, tuple[str, float, float]] = {}
    start = 0.0
    for row in rows:
        if row.get("stage") is None or row.get("samples") is None:
            continue
        name, first, _ = spans.get(row["stage"], (str(row.get("stage_name", row["stage"])), start, start))
        start = float(row["samples"])
        spans[row["stage"]] = (name, first, start)
    return list(spans.values())


def _smooth(y: np.ndarray, half: int = 10) -> np.ndarray:
    """Mean over a window of 2 half + 1 points, shorter at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (sums[high] - sums[low]) / (high - low)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = _spread(len(x), MAX_POINTS)
    return x[kept], y[kept]


def _spread(length: int, most: int) -> np.ndarray:
    """At most `most` indices spread over range(length), both ends among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))


# --- examples ---


def _examples(samples: Mapping[str, np.ndarray]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, cards) of images on which student and teacher differ, both err, or both are right."""
    if not {"images", "image_index", "labels", "student_pred", "teacher_pred"} <= samples.keys():
        return []
    names = _class_names(samples)
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


def _class_names(samples: Mapping[str, np.ndarray]) -> list[str]:
    given = [str(name) for name in samples.get("class_names", ())]
    keys = [key for key in ("labels", "student_pred", "teacher_pred") if key in samples]
    most = 1 + max(int(samples[key].max(initial=0)) for key in keys)
    return given + [str(index) for index in range(len(given), most)]


# --- reading ---


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
