"""Matplotlib's figures as SVG in a page: it scales, takes the page's colours and fetches nothing."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

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


def new_figure(height: float, width: float = 5.4) -> tuple[Figure, Any]:
    """(figure, axes), of so many inches; the page shows through."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def svg(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element. name: of this figure alone on its page, from which its ids are made."""
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
