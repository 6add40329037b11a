"""The charts of runs: curves against samples seen, similarities by layer, matrices.

They are drawn within `matplotlib.rc_context(STYLE)`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.task import Matrix, Metric
from .figure import INK, SCRATCH, SERIES, STUDENT, TEACHER, new_figure, svg

if TYPE_CHECKING:
    from markupsafe import Markup

Array = npt.NDArray[Any]
Rows = Sequence[dict[str, Any]]
MAX_POINTS = 500
MAX_NAMED = 24
# cells whose numbers are written into them
MAX_WRITTEN = 12


@dataclass(frozen=True)
class Source:
    """Rows of one metrics.jsonl, what to call them and their colour."""

    label: str
    rows: Rows
    colour: str = STUDENT


@dataclass(frozen=True)
class Curve:
    """(N,) samples seen and values."""

    label: str
    x: Array
    y: Array
    colour: str


@dataclass(frozen=True)
class Panel:
    """One chart.

    level:    a line across it, the teacher's
    marked:   a dot for each value
    swinging: smoothed where there are many values, with a logarithmic axis where they span decades
    """

    title: str
    curves: Sequence[Curve]
    level: float | None = None
    marked: bool = False
    swinging: bool = False


def panels(
    sources: Sequence[Source], metric: Metric | None, split: str, teacher: float | None = None
) -> list[Panel]:
    """Loss, evaluation, rate, gradients and speed of all sources.

    metric:  the one whose evaluations are drawn
    teacher: its value for the teacher
    """
    found = [Panel("Loss", _curves(sources, "loss"), swinging=True)]
    if metric is not None:
        evaluated = _curves(sources, f"eval/{metric.key}")
        found.append(Panel(f"{metric.label} on the {split} split", evaluated, teacher, marked=True))
    return [
        *found,
        Panel("Learning rate", _curves(sources, "lr")),
        Panel("Gradient norm", _curves(sources, "grad_norm"), swinging=True),
        Panel("Samples per second", _curves(sources, "samples_per_second")),
    ]


def terms_together(source: Source) -> Panel:
    """Every term of a run's loss in one chart."""
    named = [(key, SERIES[number % len(SERIES)]) for number, key in enumerate(_terms([source]))]
    curves = [_curve(Source(key.removeprefix("loss/"), source.rows, colour), key) for key, colour in named]
    return Panel("Loss terms", curves, swinging=True)


def terms_apart(sources: Sequence[Source]) -> list[Panel]:
    """A chart for each term, of all sources that have it."""
    return [
        Panel(f"Loss: {key.removeprefix('loss/')}", _curves(sources, key), swinging=True)
        for key in _terms(sources)
    ]


def draw(found: Sequence[Panel], rows: Rows) -> list[tuple[str, Markup]]:
    """(title, SVG) of each panel that has a curve, with the stages that the rows name."""
    stages = _stages(rows)
    return [
        (panel.title, _panel(panel, curves, stages))
        for panel in found
        if (curves := [curve for curve in panel.curves if len(curve.x)])
    ]


def _panel(panel: Panel, curves: Sequence[Curve], stages: Sequence[tuple[str, float, float]]) -> Markup:
    from matplotlib.ticker import EngFormatter, NullFormatter

    figure, axes = new_figure(height=2.4)
    for index, (name, start, end) in enumerate(stages if len(stages) > 1 else []):
        if index % 2 == 0:
            axes.axvspan(start, end, color=SCRATCH, alpha=0.13, linewidth=0)
        middle = (start + end) / 2
        axes.text(middle, 1.02, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=8)
    for curve in curves:
        noisy = panel.swinging and len(curve.x) > 60
        marker = "o" if panel.marked else ""
        style: dict[str, Any] = {"color": curve.colour, "marker": marker, "markersize": 3.5}
        if noisy:
            axes.plot(*_thinned(curve.x, curve.y), alpha=0.3, **style)
        axes.plot(*_thinned(curve.x, _smooth(curve.y) if noisy else curve.y), label=curve.label, **style)
    level = panel.level if panel.level is not None and np.isfinite(panel.level) else None
    if level is not None:
        axes.axhline(level, color=TEACHER, linestyle="--", linewidth=1.2, label="teacher")
    values = np.concatenate([curve.y for curve in curves])
    if panel.swinging and values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("samples seen")
    if len(curves) > 1 or level is not None:
        axes.legend(fontsize=8)
    return svg(figure, panel.title)


def similarity(rows: Rows) -> list[tuple[str, Markup]]:
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
            heatmap = _by_layer(name, sorted(layers), _positions(rows, kept), values)
            charts.append((f"{name} (last mean {np.nanmean(values[:, -1]):.3f})", heatmap))
    return charts


def _by_layer(name: str, layers: Sequence[int], x: Array, values: Array) -> Markup:
    """Cosine similarities (layers, len(x)); not a number where a layer was not logged."""
    from matplotlib.ticker import EngFormatter

    figure, axes = new_figure(height=1.0 + 0.15 * min(len(layers), 24))
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
    return svg(figure, f"similarity-{name}")


def matrix(shown: Matrix, name: str) -> Markup:
    """A matrix of any numbers, from its lowest (0, where none is below) to its highest; or its rows as
    lines."""
    if shown.lines:
        return _lines(shown, name)
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    values = np.asarray(shown.values, dtype=float)
    finite = values[np.isfinite(values)]
    low, high = min(0.0, finite.min(initial=0.0)), finite.max(initial=0.0)
    # From nothing to the student's colour: the page shows through, whatever its theme.
    colours = LinearSegmentedColormap.from_list(
        "student", [(0.184, 0.498, 0.839, a) for a in (0.0, 0.35, 0.65, 1.0)]
    )
    norm = PowerNorm(0.5, low, high if high > low else low + 1)
    width = 4.6 if max(values.shape) > 5 else 3.2
    figure, axes = new_figure(
        height=width * min(max(values.shape[0] / values.shape[1], 0.4), 1.6), width=width
    )
    axes.imshow(values, cmap=colours, norm=norm, interpolation="nearest", aspect="auto")
    axes.grid(False)
    axes.set(xlabel=shown.column_label, ylabel=shown.row_label)
    for axis, labels in ((axes.xaxis, shown.columns), (axes.yaxis, shown.rows)):
        if 0 < len(labels) <= MAX_NAMED:
            short = [label if len(label) <= 18 else label[:17] + "…" for label in labels]
            turned = axis is axes.xaxis and max(map(len, short)) > 2
            axis.set_ticks(range(len(short)), short, rotation=90 if turned else 0, fontsize=8)
    if max(values.shape) <= MAX_WRITTEN:
        for (row, column), value in np.ndenumerate(values):
            if value:
                colour = "white" if norm(value) > 0.55 else INK
                axes.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=7, color=colour)
    return svg(figure, name)


def _lines(shown: Matrix, name: str) -> Markup:
    figure, axes = new_figure(height=2.4)
    values = np.asarray(shown.values, dtype=float)
    labels = shown.rows if len(shown.rows) == len(values) else [""] * len(values)
    for number, (line, label) in enumerate(zip(values, labels, strict=True)):
        colour = STUDENT if number == 0 else SERIES[number % len(SERIES)]
        marker = "o" if len(line) == 1 else ""
        axes.plot(np.arange(1, len(line) + 1), line, color=colour, label=label, marker=marker)
    axes.set_ylim(bottom=min(0.0, float(np.nanmin(values, initial=0.0))))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=shown.column_label, ylabel=shown.row_label)
    if len(values) > 1:
        axes.legend(fontsize=8)
    return svg(figure, name)


def _terms(sources: Sequence[Source]) -> list[str]:
    return sorted(
        {key for source in sources for row in source.rows for key in row if key.startswith("loss/")}
    )


def _curves(sources: Sequence[Source], key: str) -> list[Curve]:
    return [_curve(source, key) for source in sources]


def _curve(source: Source, key: str) -> Curve:
    kept = [row for row in source.rows if row.get(key) is not None]
    y = np.array([row[key] for row in kept], dtype=float)
    return Curve(source.label, _positions(source.rows, kept), y, source.colour)


def _positions(rows: Rows, kept: Rows) -> Array:
    """Samples seen at each kept row; one that does not say takes those of its step or the last before."""
    seen = {row["step"]: row["samples"] for row in rows if row.get("samples") is not None}
    steps = sorted(seen)
    if not steps:
        return np.array([row["step"] for row in kept], dtype=float)
    found = np.searchsorted(steps, [row["step"] for row in kept], side="right") - 1
    return np.array([seen[steps[max(index, 0)]] if index >= 0 else 0 for index in found], dtype=float)


def _stages(rows: Rows) -> list[tuple[str, float, float]]:
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


def _smooth(y: Array, half: int = 10) -> Array:
    """Mean over a window of 2 half + 1 points, shorter at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (sums[high] - sums[low]) / (high - low)


def _thinned(x: Array, y: Array) -> tuple[Array, Array]:
    kept = _spread(len(x), MAX_POINTS)
    return x[kept], y[kept]


def _spread(length: int, most: int) -> Array:
    """At most `most` indices spread over range(length), both ends among them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))
