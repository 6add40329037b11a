"""A label that other runs of a study choose, such as a learning rate by runs on held-out data.

`choose` of a study file:

axis:   whose label is chosen, such as rate
by:     axis -> label of the runs that choose, such as {part: held_out, seed: s0}
for:    axis -> label of the cells for which it is chosen, such as {part: test}
metric: of the choosing runs' results, by default the report's; the report's `better` says which way

A cell of `for` is run only with the label whose choosing run is best: the run that agrees with it in all
other axes, with those of `by` as written. Of equal ones it is the first label of the axis. A label without a
finished run is not chosen, and a cell without any is not run. Only cells of `for` stand in tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from study_file import Cell, Study, name_of
from study_tables import read_score


@dataclass(frozen=True)
class Choice:
    """What a study says in `choose`; with an empty `axis` nothing is chosen."""

    study: Study
    axis: str = ""
    by: dict[str, str] = field(default_factory=dict)
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
        by, to = (_labels(study, said.get(key), key) for key in ("by", "for"))
        if said["axis"] in {**by, **to} or not any(by.get(axis) not in (None, to[axis]) for axis in to):
            raise ValueError(
                "choose: by and for are the same cells; tell them apart by another axis than its own"
            )
        return cls(study, said["axis"], by, to, said.get("metric") or study.report["metric"])

    def _asks(self, cell: Cell) -> bool:
        return bool(self.axis) and all(cell[axis] == label for axis, label in self.to.items())

    def before(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those for which nothing is chosen."""
        return [cell for cell in cells if not self._asks(cell)]

    def chosen(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of `for` with the label that is best, as far as choosing runs have finished."""
        return [cell for cell in cells if self._asks(cell) and self.best(cell) == cell[self.axis]]

    def open(self, cells: Iterable[Cell]) -> list[Cell]:
        """All but those of `for` that another label has beaten, or that cannot be told yet."""
        listed = list(cells)
        return [*self.before(listed), *self.chosen(listed)]

    def told(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of tables."""
        return [cell for cell in cells if self._asks(cell)] if self.axis else list(cells)

    def best(self, cell: Cell) -> str | None:
        """The label that is chosen for a cell; None while no choosing run has finished."""
        better = 1 if self.study.report["better"] == "up" else -1
        found: tuple[float, str] | None = None
        for label in self.study.axes[self.axis]:
            run = self.study.root / name_of(cell | self.by | {self.axis: label})
            if _is_null(run, self.metric):  # it diverged
                continue
            score = read_score(run, self.metric)
            if score is not None and (found is None or better * score.value > found[0]):
                found = better * score.value, label
        return None if found is None else found[1]


def _is_null(run: Path, metric: str) -> bool:
    """Whether a finished run has the metric, and no finite number for it."""
    try:
        results = json.loads((run / "results.json").read_text())
        return metric in results["student"] and results["student"][metric] is None
    except (OSError, ValueError, TypeError, KeyError):  # `read_score` says what is wrong
        return False


def _labels(study: Study, said: Any, key: str) -> dict[str, str]:
    if not isinstance(said, dict) or not said:
        raise ValueError(f"choose: {key} is {said!r}; write axis: label")
    for axis, label in said.items():
        if axis not in study.axes or str(label) not in study.axes[axis]:
            raise ValueError(f"choose: {key}: {axis}: {label} is no label of the study")
    return {axis: str(label) for axis, label in said.items()}
