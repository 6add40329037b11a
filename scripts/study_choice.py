"""A label that other runs of a study choose, such as a learning rate by runs on held-out data.

`choose` of a study file:

axis:   whose label is chosen, such as rate
by:     axis -> label of the runs that choose, such as {part: held_out, seed: s0}; with several labels, such
        as of a few tasks, the mean of their runs chooses
for:    axis -> label of the cells for which it is chosen, such as {part: test}
metric: of the choosing runs' results, by default the report's; the report's `better` says which way

A cell of `for` is run only with the label whose choosing run is best: the run that agrees with it in all
other axes, with those of `by` as written. Of equal ones it is the first label of the axis. A label whose
choosing runs have not all finished is not chosen, which is said, and a cell without any is not run. Only
cells of `for` stand in tables.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study_file import Cell, Study, grid, name_of
from study_tables import read_score

# of which labels are passed over that many are named
_NAMED = 6


@dataclass(frozen=True)
class Choice:
    """What a study says in `choose`; with an empty `axis` nothing is chosen."""

    study: Study
    axis: str = ""
    by: dict[str, list[str]] = field(default_factory=dict)
    to: dict[str, str] = field(default_factory=dict)
    metric: str = ""

    @classmethod
    def of(cls, study: Study) -> Choice:
        """Raises ValueError for what does not fit the study."""
        said = study.choose
        if said is None:
            return cls(study)
        if not isinstance(said, dict) or set(said) - {"axis", "by", "for", "metric"}:
            raise ValueError(f"choose is {said!r}; write axis, by, for and perhaps metric")
        if said.get("axis") not in study.axes:
            raise ValueError(f"choose: unknown axis {said.get('axis')!r}; known: {', '.join(study.axes)}")
        if study.report.get("better") not in ("up", "down"):
            raise ValueError("choose: report says no better; write up or down there")
        by = _labels(study, said.get("by"), "by", several=True)
        to = {axis: labels[0] for axis, labels in _labels(study, said.get("for"), "for").items()}
        if said["axis"] in {**by, **to} or not any(
            label not in by.get(axis, [label]) for axis, label in to.items()
        ):
            raise ValueError(
                "choose: by and for are the same cells; tell them apart by another axis than its own"
            )
        return cls(study, said["axis"], by, to, said.get("metric") or study.report["metric"])

    def _asks(self, cell: Cell) -> bool:
        return bool(self.axis) and all(cell[axis] == label for axis, label in self.to.items())

    def before(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those for which nothing is chosen, and those that choose for the others."""
        listed = list(cells)
        found = [cell for cell in listed if not self._asks(cell)]
        choosing = {
            name_of(each)
            for cell in filter(self._asks, listed)
            for label in self.study.axes[self.axis]
            for each in self._choosing(cell, label)
        }
        choosing -= {name_of(cell) for cell in found}
        return found + [cell for cell in self.study.cells if name_of(cell) in choosing]

    def chosen(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of `for` with the label that is best, as far as choosing runs have finished."""
        best: dict[str, str | None] = {}  # of cells that the same runs choose for, which are read once
        found = []
        for cell in filter(self._asks, cells):
            key = name_of(self._choosing(cell, "")[0])
            if key not in best:
                best[key] = self.best(cell)
            if best[key] == cell[self.axis]:
                found.append(cell)
        return found

    def _choosing(self, cell: Cell, label: str) -> list[Cell]:
        """Those by whose mean a cell has this label, or another."""
        return [cell | each | {self.axis: label} for each in grid(self.by)]

    def open(self, cells: Iterable[Cell]) -> list[Cell]:
        """All but those of `for` that another label has beaten, or that cannot be told yet."""
        listed = list(cells)
        return [*self.before(listed), *self.chosen(listed)]

    def asked(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those that tables are about, whatever is chosen."""
        return list(filter(self._asks, cells)) if self.axis else list(cells)

    def told(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of tables: of those that another label has beaten since they ran, none."""
        return self.chosen(cells) if self.axis else list(cells)

    def best(self, cell: Cell) -> str | None:
        """The label that is chosen for a cell; None while no choosing run has finished."""
        better = 1 if self.study.report["better"] == "up" else -1
        found: tuple[float, str] | None = None
        for label in self.study.axes[self.axis]:
            value = self._mean(self._runs(cell, label))
            if value is not None and (found is None or better * value > found[0]):
                found = better * value, label
        return None if found is None else found[1]

    def passed_over(self, cells: Iterable[Cell]) -> str:
        """The labels of these cells that were not compared with the others, and why not, in a line; empty
        where there are none."""
        found: dict[tuple[str, str], list[str]] = {}  # by whom they were to be chosen for, and why not
        seen = set()
        for cell in filter(self._asks, cells):
            runs, label = self._runs(cell, cell[self.axis]), cell[self.axis]
            if runs[0] in seen:
                continue
            seen.add(runs[0])
            if self._mean(runs) is not None:
                continue
            of = ".".join(said for axis, said in cell.items() if axis not in {self.axis, *self.by})
            diverged = any(_is_null(run, self.metric) for run in runs)
            found.setdefault((of, "diverged" if diverged else "not finished"), []).append(label)
        said = [f"{', '.join(labels)} of {of or 'all'} ({why})" for (of, why), labels in found.items()]
        if not said:
            return ""
        more = f"; and {len(said) - _NAMED} more" if len(said) > _NAMED else ""
        return f"choose: {self.axis}: passed over: {'; '.join(said[:_NAMED])}{more}"

    def _runs(self, cell: Cell, label: str) -> list[Path]:
        """The folders of those by which a cell has this label, or another."""
        return [self.study.root / name_of(each) for each in self._choosing(cell, label)]

    def _mean(self, runs: list[Path]) -> float | None:
        """None where one of them has not finished, or has diverged."""
        values = []
        for run in runs:
            score = None if _is_null(run, self.metric) else read_score(run, self.metric)
            if score is None:
                return None
            values.append(score.value)
        return statistics.fmean(values)


def _is_null(run: Path, metric: str) -> bool:
    """Whether a finished run has the metric, and no finite number for it."""
    try:
        results = json.loads((run / "results.json").read_text())
        return metric in results["student"] and results["student"][metric] is None
    except (OSError, ValueError, TypeError, KeyError):  # `read_score` says what is wrong
        return False


def _labels(study: Study, said: Any, key: str, several: bool = False) -> dict[str, list[str]]:
    if not isinstance(said, dict) or not said:
        raise ValueError(f"choose: {key} is {said!r}; write axis: label")
    found = {}
    for axis, labels in said.items():
        listed = labels if several and isinstance(labels, list) and labels else [labels]
        for label in listed:
            if axis not in study.axes or str(label) not in study.axes[axis]:
                raise ValueError(f"choose: {key}: {axis}: {label} is no label of the study")
        found[axis] = [str(label) for label in listed]
    return found
