"""A name in YAML -> a class in Python.

A part is one file in `teachers/`, `students/`, `losses/`, `tasks/` or `data/` with a registered configuration
dataclass; its `build()` makes the object, so that heavy imports wait until a part is used. Parts of other
distributions are found through the entry-point group `transmamba.parts`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import UserError, suggest

Part = TypeVar("Part", bound=type)

ENTRY_POINT_GROUP = "transmamba.parts"


class Registry:
    """The parts of one kind, by name. `package` is imported whole on first use, so a dropped-in file is
    found."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._parts: dict[str, type] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[Part], Part]:
        """Class decorator. Raises ValueError on a duplicate name or a class that is no frozen dataclass."""

        def add(part: Part) -> Part:
            params = getattr(part, "__dataclass_params__", None)
            if params is None or not params.frozen:
                raise ValueError(f"{self.kind} {name!r}: {part.__qualname__} must be a frozen dataclass")
            if name in self._parts and self._parts[name].__qualname__ != part.__qualname__:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._parts[name]} and {part}")
            self._parts[name] = part
            part.name = name  # type: ignore[attr-defined]
            return part

        return add

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
            entry.load()

    def names(self) -> list[str]:
        self._discover()
        return sorted(self._parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._parts

    def __getitem__(self, name: str) -> Any:
        self._discover()
        if name not in self._parts:
            raise UserError(f"unknown {self.kind} {name!r}{suggest(name, self._parts)}")
        return self._parts[name]


def options(part: type) -> list[str]:
    """The field names of a registered part's configuration."""
    return [field.name for field in dataclasses.fields(part)]


TEACHERS = Registry("teacher", "transmamba.teachers")
STUDENTS = Registry("student", "transmamba.students")
LOSSES = Registry("loss", "transmamba.losses")
TASKS = Registry("task", "transmamba.tasks")
READERS = Registry("data reader", "transmamba.data.images")
