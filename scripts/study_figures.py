"""Two figures of a setting and student: top-1 against the share of the data, and against the images seen.

`draw_fractions` and `draw_curves` write PNG files without a date, from values alone. An arm has the same
colour, marker and dashes in every figure of a study, from its place among the arms that any of them shows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullLocator

# Okabe and Ito's colours, told apart by colour-blind readers too; without yellow, which white paper swallows.
# Black is for the arm that the study is about.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FULL, BLACK = "full", "#000000"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))
INK, GRAY = "#222222", "#767676"
TEACHER: dict[str, Any] = {"color": GRAY, "linestyle": (0, (6, 3)), "linewidth": 1}
STYLE = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.parse_math": False,
}
PANELS_A_ROW = 3

Points = list[tuple[float, float, float]]
Curves = dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]


def figure_name(place: tuple[str, str]) -> str:
    return "-".join(re.sub(r"[^\w-]+", "_", part) for part in place if part) or "study"


def style_of(arm: str, arms: list[str]) -> dict[str, Any]:
    """Colour, marker, dashes and width of an arm among these: no two of the first 18 are alike."""
    index = arms.index(arm)
    style = {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
        "linewidth": 1.2,
    }
    return style | {"color": BLACK, "linestyle": "-", "linewidth": 2.0} if arm == FULL else style


def draw_fractions(
    found: dict[str, Points], arms: list[str], teacher: float | None, title: str, path: Path
) -> None:
    """One line an arm with error bars.

    found: arm -> (share of the data in percent, mean top-1, standard deviation)
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for place, (arm, points) in enumerate(found.items()):
            share, mean, deviation = np.array(points).T
            share = share * 1.008 ** (place - len(found) / 2)  # error bars side by side
            axes.errorbar(
                share, mean, deviation, **style_of(arm, arms), markersize=4.5, elinewidth=0.9, capsize=2
            )
        if teacher is not None:
            axes.axhline(teacher, **TEACHER)
        shares = sorted({share for points in found.values() for share, _, _ in points})
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="share of the training images (%)", ylabel="test top-1 (%)")
        axes.set_title(title, loc="left")
        _legend(figure, list(found), arms, teacher is not None)
        _save(figure, path)


def draw_curves(found: dict[str, Curves], arms: list[str], label: str, title: str, path: Path) -> None:
    """A panel a fraction, one line an arm; one legend for all.

    found: fraction -> arm -> (images seen, top-1), each (evaluations,)
    """
    drawn = {fraction: curves for fraction, curves in found.items() if curves}
    columns = min(PANELS_A_ROW, len(drawn))
    rows = -(-len(drawn) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 2.6 * columns, 0.9 + 2.5 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, (fraction, curves) in zip(panels, drawn.items(), strict=False):
            for arm, (x, y) in curves.items():
                marks = max(1, len(x) // 8)
                axes.plot(x, y, **style_of(arm, arms), markersize=3, markevery=marks)
            axes.set_title(f"{fraction} of the training images", loc="left")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        for axes in panels[len(drawn) :]:
            axes.set_axis_off()
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.supxlabel("images seen in training", fontsize=9)
        figure.supylabel(label, fontsize=9)
        _legend(figure, [arm for arm in arms if any(arm in curves for curves in drawn.values())], arms)
        _save(figure, path)


def _legend(figure: Figure, shown: list[str], arms: list[str], teacher: bool = False) -> None:
    lines = [Line2D([], [], label=arm, markersize=4, **style_of(arm, arms)) for arm in shown]
    lines += [Line2D([], [], label="teacher", **TEACHER)] * teacher
    figure.legend(handles=lines, loc="outside right upper", handlelength=3)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
