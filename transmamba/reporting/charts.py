"""The charts of a run as SVG that goes into a page: curves, similarities, the confusion matrix.

They are drawn within `matplotlib.rc_context(STYLE)`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .run_data import RunData, class_names, watched_split

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
MAX_NAMED_CLASSES = 24


def curves(run: RunData) -> list[tuple[str, Markup]]:
    """(title, SVG) of loss, its terms, evaluation and learning rate against samples seen."""
    results, charts = run.results, []
    terms = sorted({key for row in run.rows for key in row if key.startswith("loss/")})
    lines = {
        "Loss": {"loss": (run.rows, "loss", STUDENT)},
        "Loss terms": {
            key.removeprefix("loss/"): (run.rows, key, SERIES[index % len(SERIES)])
            for index, key in enumerate(terms)
        },
        f"Top-1 on the {watched_split(run.config)} split": {
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


def similarity(rows: list[dict[str, Any]]) -> list[tuple[str, Markup]]:
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


def confusion(samples: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The student's confusion matrix, rows normalised, and the pairs of classes it confuses most."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    if not {"labels", "student_pred"} <= samples.keys():
        return {}
    labels, predicted = samples["labels"].astype(int), samples["student_pred"].astype(int)
    names = class_names(samples)
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
