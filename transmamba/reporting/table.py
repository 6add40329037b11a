"""The table of results as plain text."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..core.task import Metric
from .metrics import MISSING, difference_columns, models_of, rows, written

# of a file or a pipe, which have no width
_WIDE = 10_000
# for a terminal that knows no lines
_PLAIN = str.maketrans({"┃": "|", "│": "|", "━": "-", "╇": "+", MISSING: "-"})


def results_table(
    results: Mapping[str, Any],
    metrics: Sequence[Metric],
    student: str = "student",
    width: int | None = None,
) -> str:
    """A row for teacher, student (under that name) and scratch, a column for each number that any has; rows
    for how student and teacher differ, where that is known.

    Where that is wider than `width` characters (left out: the terminal's), the table is turned: a row for
    each number.
    """
    names = models_of(results)
    titles = [student if name == "student" else name for name in names]
    found = rows(results, metrics, names)
    labels = [metric.label for metric, _ in found]
    cells = [[written(metric, value) for value in values] for metric, values in found]
    apart = difference_columns(results, [metric for metric, _ in found], student)
    titles += [head for head, _ in apart]
    cells = [row + list(more) for row, *more in zip(cells, *(column for _, column in apart), strict=True)]
    by_model = [[title, *column] for title, column in zip(titles, zip(*cells, strict=True), strict=True)]
    text = text_table(["model", *labels], by_model)
    if max(map(len, text.splitlines()), default=0) <= (_width() if width is None else width):
        return text
    return text_table(["", *titles], [[label, *row] for label, row in zip(labels, cells, strict=True)])


def text_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Heads above rows, the first column to the left, in characters that the terminal knows."""
    table = Table(title=None, show_edge=False, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    shown = io.StringIO()
    # a fixed width, whatever the environment says: rich would cut columns to fit
    Console(file=shown, width=_WIDE, color_system=None, force_terminal=False, markup=False).print(table)
    text = "\n".join(line.rstrip() for line in shown.getvalue().splitlines()).rstrip()
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return text.translate(_PLAIN)
    return text


def _width() -> int:
    stream = sys.stdout
    shown = stream is not None and hasattr(stream, "isatty") and stream.isatty()
    return shutil.get_terminal_size().columns if shown else _WIDE
