"""A study file: its cells, what they need, and the recipe of each. scripts/study.py says what it may hold."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = dict[str, str]
_FOLDER = "output_dir="
KEYS = {"output_dir", "common", "every_cell", "first", "axes", "cells", "choose", "report"}
REPORT_KEYS = {"metric", "better", "rows", "columns", "baseline", "ranks"}
OF_A_CELL = ("teacher", "scratch")  # what a cell's own results.json may hold beside its student


def name_of(labels: Mapping[str, str]) -> str:
    """The cell's folder: its labels in the order of the axes."""
    return ".".join(labels.values())


def grid(axes: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Every combination of one label an axis."""
    for labels in itertools.product(*axes.values()):
        yield dict(zip(axes, labels, strict=True))


@dataclass(frozen=True)
class Run:
    """One recipe to run: its folder's name and its overrides, `config=RECIPE` among them."""

    name: str
    overrides: tuple[str, ...]

    @property
    def config(self) -> str:
        """The last recipe named, or nothing."""
        found = [item.removeprefix("config=") for item in self.overrides if item.startswith("config=")]
        return found[-1] if found else ""

    def resolved(self) -> tuple[dict[str, Any], list[str]]:
        """The recipe as plain values with its overrides in it, and which options they dropped. Raises
        ValueError where the file cannot be read or an override leads nowhere."""
        from transmamba.config.file import apply_override  # and with it torch, which a table can do without

        recipe, dropped = copy.deepcopy(_read_recipe(self.config)), []
        for item in self.overrides:
            if item.startswith("config="):
                continue
            try:
                dropped += apply_override(recipe, item)
            except ValueError as error:
                raise ValueError(f"{self.name}: override {item}: {error}") from None
        return recipe, dropped


@functools.cache
def _read_recipe(path: str) -> dict[str, Any]:
    from transmamba.config.file import read_yaml

    return read_yaml(Path(path))


def names(recipe: Any, folder: Path) -> bool:
    """Whether any value of a recipe is this folder or something in it."""
    if isinstance(recipe, dict | list):
        below = recipe.values() if isinstance(recipe, dict) else recipe
        return any(names(value, folder) for value in below)
    return isinstance(recipe, str) and Path(recipe).is_relative_to(folder)


@dataclass(frozen=True)
class Label:
    """What a cell with this label sets, and values for its templates."""

    set: tuple[str, ...]
    let: dict[str, str]

    @classmethod
    def read(cls, value: Any) -> Label:
        full = value if isinstance(value, dict) else {"set": value}
        if "needs" in full:
            raise ValueError("axes: leave needs out; a run waits for those of first that its recipe names")
        if unknown := set(full) - {"set", "let"}:
            raise ValueError(f"axes: unknown key {min(unknown)!r}; write overrides, or set, let")
        let = full.get("let") or {}
        if not isinstance(let, dict):
            raise ValueError(f"axes: let is {let!r}; write name: value")
        return cls(tuple(as_overrides(full.get("set"))), {name: str(item) for name, item in let.items()})


def as_overrides(items: Any) -> list[str]:
    """Overrides as text: `a.b=c` as it is written, a mapping a.b: VALUE as one for each of its keys."""
    if isinstance(items, str):
        raise ValueError(f"overrides {items!r} are text; write a list, [{items}]")
    if not isinstance(items or [], list) or not all(isinstance(item, str | dict) for item in items or ()):
        raise ValueError(f"overrides {items!r} are no list of key=value or of mappings")
    texts = []
    for item in items or ():
        texts += (
            [f"{key}={json.dumps(value)}" for key, value in item.items()]
            if isinstance(item, dict)
            else [item]
        )
    return texts


class Study:
    """A study file, read. Raises ValueError naming what does not fit in it."""

    def __init__(self, data: Any, overrides: Sequence[str] = ()) -> None:
        _check_shape(data)
        given = [item for item in overrides if not item.startswith(_FOLDER)]
        folders = [item.removeprefix(_FOLDER) for item in overrides if item.startswith(_FOLDER)]
        self.root = Path([data["output_dir"], *folders][-1])
        self.axes = {
            axis: {str(label): Label.read(value) for label, value in labels.items()}
            for axis, labels in data["axes"].items()
        }
        self.choose: Any = data.get("choose")
        self.report: dict[str, Any] = data["report"]
        _check_report(self.report, self.axes)
        self.common = as_overrides(data.get("common"))
        self.every_cell = as_overrides(data.get("every_cell"))
        self.first = {name: as_overrides(items) for name, items in (data.get("first") or {}).items()}
        self.overrides = tuple(given)
        self.cells = list(self._select(data.get("cells") or [{}]))
        self._resolved: dict[Run, tuple[dict[str, Any], list[str]]] = {}

    def _select(self, blocks: list[dict[str, Any]]) -> Iterable[Cell]:
        """The blocks' cells, each once, in their order."""
        seen: set[str] = set()
        for block in blocks:
            if unknown := set(block) - set(self.axes):
                raise ValueError(f"cells: unknown axis {min(unknown)!r}; known: {', '.join(self.axes)}")
            chosen = {}
            for axis, labels in self.axes.items():
                wanted = block.get(axis, list(labels))
                chosen[axis] = [str(label) for label in (wanted if isinstance(wanted, list) else [wanted])]
                for label in chosen[axis]:
                    if label not in labels:
                        raise ValueError(f"cells: {axis} has no {label!r}; known: {', '.join(labels)}")
            for cell in grid(chosen):
                if name_of(cell) not in seen:
                    seen.add(name_of(cell))
                    yield cell

    def run_of(self, cell: Cell) -> Run:
        own = (item for axis, label in cell.items() for item in self.axes[axis][label].set)
        return self._run(name_of(cell), [*self.every_cell, *own], cell)

    def chain(self, cell: Cell) -> list[Run]:
        """What the cell waits for, in the order of `first`, and the cell: the runs whose folders its recipe
        names, and those that their recipes name in turn."""
        templates = {self._filled([name], cell)[0]: name for name in self.first}
        found: dict[str, Run] = {}
        waiting = [self.run_of(cell)]
        for run in waiting:
            recipe, _ = self.resolved(run)
            for name in templates.keys() - found.keys():
                if names(recipe, self.root / name):
                    found[name] = self._run(name, self.first[templates[name]], cell)
                    waiting.append(found[name])
        return [*(found[name] for name in templates if name in found), waiting[0]]

    def resolved(self, run: Run) -> tuple[dict[str, Any], list[str]]:
        """`run.resolved()`, worked out once a run."""
        if run not in self._resolved:
            self._resolved[run] = run.resolved()
        return self._resolved[run]

    def check(self, run: Run) -> None:
        """Raises ValueError for a recipe with mistakes, which the run itself would be refused for."""
        from transmamba.config import load as configs
        from transmamba.errors import ConfigError
        from transmamba.runs.recipe import Recipe

        recipe, _ = self.resolved(run)
        try:
            configs.parse(Recipe, {**recipe, "output_dir": str(self.root / run.name)}, run.name)
        except ConfigError as error:
            raise ValueError(f"{run.name}: {'; '.join(error.problems)}") from None

    def _run(self, name: str, overrides: Iterable[str], cell: Cell) -> Run:
        filled = self._filled([*self.common, *overrides], cell)
        if moved := [item for item in filled if item.startswith(_FOLDER)]:
            raise ValueError(
                f"{moved[0]}: every run is in the study's own output_dir, in a folder of its name; write "
                "output_dir at the top of the study, or on the command line"
            )
        run = Run(name, (*filled, *self.overrides))
        if not run.config:
            raise ValueError(f"{name}: no recipe; add an override config=RECIPE.yaml")
        return run

    def _filled(self, texts: Iterable[str], cell: Cell) -> list[str]:
        known = {**cell, "output_dir": str(self.root)}
        for axis, label in cell.items():
            known |= self.axes[axis][label].let
        try:
            return [string.Template(text).substitute(known) for text in texts]
        except KeyError as error:
            raise ValueError(f"${{{error.args[0]}}} is no axis and nothing that a label lets be") from None


def _check_shape(data: Any) -> None:
    """Raises ValueError where a study file is not what the rest takes for granted."""
    if not isinstance(data, dict):
        raise ValueError("a study is a mapping with output_dir, axes and report")
    if unknown := set(data) - KEYS:
        raise ValueError(f"unknown key {min(unknown)!r}; known: {', '.join(sorted(KEYS))}")
    for key, kind in (("output_dir", str), ("axes", dict), ("report", dict)):
        if not isinstance(data.get(key), kind):
            raise ValueError(f"{key}: missing, or no {'text' if kind is str else 'mapping'}")
    for axis, labels in data["axes"].items():
        if not isinstance(labels, dict):
            raise ValueError(f"axes: {axis} is no mapping of labels to overrides")
    if not isinstance(data.get("first") or {}, dict):
        raise ValueError("first is no mapping of names to overrides")
    cells = data.get("cells") or []
    if not isinstance(cells, list) or not all(isinstance(block, dict) for block in cells):
        raise ValueError("cells is no list of axis: labels")


def _check_report(report: dict[str, Any], axes: Mapping[str, Mapping[str, Label]]) -> None:
    """Raises ValueError for what no table can be made of."""
    if unknown := set(report) - REPORT_KEYS:
        raise ValueError(f"report: unknown key {min(unknown)!r}; known: {', '.join(sorted(REPORT_KEYS))}")
    for key in ("metric", "rows", "columns"):
        if not report.get(key):
            raise ValueError(f"report: no {key}")
    if not isinstance(report["rows"], list):
        raise ValueError(f"report: rows is {report['rows']!r}; write a list of axes")
    shown = [*report["rows"], report["columns"]]
    for axis in shown:
        if axis not in axes:
            raise ValueError(f"report: unknown axis {axis!r}; known: {', '.join(axes)}")
    if report.get("better") not in (None, "up", "down"):
        raise ValueError(f"report: better is {report['better']!r}; write up or down")
    baseline = report.get("baseline")
    if baseline is None or baseline in OF_A_CELL:
        return
    if not isinstance(baseline, dict) or not baseline:
        raise ValueError(f"report: baseline is {baseline!r}; write axis: label, or {' or '.join(OF_A_CELL)}")
    for axis, label in baseline.items():
        if axis not in shown or str(label) not in axes[axis]:
            raise ValueError(f"report: baseline {axis}: {label} is no label of rows or columns")
