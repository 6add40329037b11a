"""The page of a model that was measured without a run: a run's page without its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.task import Metric
from ..errors import UserError
from ..evaluation.measured import Measured
from .metrics import as_saved
from .pages import write_page
from .report import render
from .run_data import RunData
from .samples import exhibits_of

FILE = "report.html"
# samples of each evaluator
_NUM_SAMPLES = 24


def place_of_page(path: str | Path, *, overwrite: bool) -> Path:
    """FILE, or report.html in a folder. Raises UserError for one that exists unless `overwrite`, and where
    there is no folder for it: before anything is measured."""
    page = Path(path).expanduser()
    page = page / FILE if page.is_dir() else page
    if not page.parent.is_dir():
        raise UserError(f"--report {page}: {page.parent} is no folder; make it, or write another file")
    if page.exists() and not overwrite:
        raise UserError(f"--report {page} exists; write another file, or --overwrite")
    return page


def write_evaluation(
    page: Path,
    measured: Measured,
    metrics: Sequence[Metric],
    *,
    models: Mapping[str, str],
    data: str,
    split: str,
    environment: Mapping[str, Any],
) -> Path:
    """Numbers, exhibits and items to look at, their pictures inside the page.

    models: where `student` came from, and its `teacher` where there is one
    data:   in words, what they were measured on
    Raises UserError where nothing can be written there.
    """
    splits = {"watched": split, "final": split}
    shown = RunData(
        name="evaluate",
        results=as_saved(measured.results(), tuple(metrics), splits),
        config={**models, "task": data, "split": split},
        samples=measured.samples(_NUM_SAMPLES),
        exhibits=exhibits_of(measured),
        environment=environment,
        trained=False,
        called="student" if "teacher" in models else "model",
    )
    return write_page(page, render(shown), "--report")
