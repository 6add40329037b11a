"""A study file: its cells, what they need, and the recipe of each. scripts/study.py says what it may hold."""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = dict[str, str]


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


@dataclass(frozen=True)
class Label:
    """What a cell with this label sets, which runs it needs, and values for its templates."""

    set: tuple[str, ...]
    needs: tuple[str, ...]
    let: dict[str, str]

    @classmethod
    def read(cls, value: Any) -> Label:
        full = value if isinstance(value, dict) else {"set": value}
        if unknown := set(full) - {"set", "needs", "let"}:
            raise ValueError(f"axes: unknown key {unknown.pop()!r}; write overrides, or set, needs, let")
        let = {name: str(item) for name, item in (full.get("let") or {}).items()}
        return cls(tuple(as_overrides(full.get("set"))), tuple(full.get("needs") or ()), let)


def as_overrides(items: Any) -> list[str]:
    """Overrides as text: `a.b=c` as it is written, a mapping a.b: VALUE as one for each of its keys."""
    if isinstance(items, str):
        raise ValueError(f"overrides {items!r} are text; write a list, [{items}]")
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

    def __init__(self, data: Any, overrides: Iterable[str] = ()) -> None:
        _check_shape(data)
        self.root = Path(data["output_dir"])
        self.report: dict[str, Any] = data["report"]
        self.axes = {
            axis: {str(label): Label.read(value) for label, value in labels.items()}
            for axis, labels in data["axes"].items()
        }
        self.common = as_overrides(data.get("common"))
        self.first = {name: as_overrides(items) for name, items in (data.get("first") or {}).items()}
        self.overrides = tuple(overrides)
        self.cells = list(self._select(data.get("cells") or [{}]))
        for axis in (*self.report["rows"], self.report["columns"]):
            if axis not in self.axes:
                raise ValueError(f"report: unknown axis {axis!r}; known: {', '.join(self.axes)}")

    def _select(self, blocks: list[dict[str, Any]]) -> Iterable[Cell]:
        """The blocks' cells, each once, in their order."""
        seen: set[str] = set()
        for block in blocks:
            if unknown := set(block) - set(self.axes):
                raise ValueError(f"cells: unknown axis {unknown.pop()!r}; known: {', '.join(self.axes)}")
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
        chosen = [*self.common, *own]
        return self._run(name_of(cell), chosen, cell)

    def needs(self, cell: Cell) -> list[Run]:
        """The runs that a cell needs, in the order of `first`."""
        named = [item for axis, label in cell.items() for item in self.axes[axis][label].needs]
        wanted = set(self._filled(named, cell))
        runs = []
        for name, overrides in self.first.items():
            (filled,) = self._filled([name], cell)
            if filled in wanted:
                runs.append(self._run(filled, overrides, cell))
        if missing := wanted - {run.name for run in runs}:
            raise ValueError(f"needs: no {missing.pop()!r} in first; known: {', '.join(self.first)}")
        return runs

    def _run(self, name: str, overrides: Iterable[str], cell: Cell) -> Run:
        run = Run(name, (*self._filled(overrides, cell), *self.overrides))
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
    for key, kind in (("output_dir", str), ("axes", dict), ("report", dict)):
        if not isinstance(data.get(key), kind):
            raise ValueError(f"{key}: missing, or no {'text' if kind is str else 'mapping'}")
    for axis, labels in data["axes"].items():
        if not isinstance(labels, dict):
            raise ValueError(f"axes: {axis} is no mapping of labels to overrides")
    for key in ("metric", "rows", "columns"):
        if not data["report"].get(key):
            raise ValueError(f"report: no {key}")
