"""A name in YAML -> a class in Python.

A part is one file in `teachers/`, `students/`, `losses/`, `tasks/` or `data/` with a registered configuration
dataclass; its `build()` makes the object, so that heavy imports wait until a part is used. Parts of other
distributions are found through the entry-point group `transmamba.parts`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import logging
import pkgutil
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import MissingExtra, UserError, suggest

Part = TypeVar("Part", bound=type)

ENTRY_POINT_GROUP = "transmamba.parts"
_LOG = logging.getLogger(__name__)


class Registry:
    """The parts of one kind, by name. `package` is imported whole on first use, so a dropped-in file is
    found.

    A file or an entry point that fails to import is named in one line, once; the others are there, and it is
    tried again at the next look-up.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._parts: dict[str, type] = {}
        self._loaded: dict[str, Any] = {}
        self._failed: dict[str, str] = {}
        self._needs: MissingExtra | None = None
        self._looking = threading.local()
        self._complete = False

    def register(self, name: str) -> Callable[[Part], Part]:
        """Class decorator. Raises ValueError on a duplicate name or a class that is no frozen dataclass."""

        def add(part: Part) -> Part:
            params = getattr(part, "__dataclass_params__", None)
            if params is None or not params.frozen:
                raise ValueError(f"{self.kind} {name!r}: {part.__qualname__} must be a frozen dataclass")
            # a file that is imported again makes its classes anew: they take the place of the old ones
            if name in self._parts and _identity(self._parts[name]) != _identity(part):
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._parts[name]} and {part}")
            self._parts[name] = part
            part.name = name  # type: ignore[attr-defined]
            return part

        return add

    def import_files(self) -> bool:
        """Import what was not imported yet of the package; whether nothing failed."""
        package = self._try(self.package, functools.partial(importlib.import_module, self.package))
        if package is None:
            return False
        names = [f"{self.package}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
        return None not in [
            self._try(name, functools.partial(importlib.import_module, name)) for name in names
        ]

    def _discover(self) -> None:
        """A part that looks itself up while it is imported sees those that are there."""
        if self._complete or getattr(self._looking, "now", False):
            return
        self._looking.now = True
        try:
            entries = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
            loaded = [self._try(f"entry point {e.name} = {e.value}", e.load) for e in entries]
            self._complete = self.import_files() and None not in loaded
        finally:
            self._looking.now = False

    def _try(self, what: str, load: Callable[[], Any]) -> Any:
        """What `load` returns; None where it fails, and what it had registered by then is gone again."""
        if what in self._loaded:
            return self._loaded[what]
        try:
            self._loaded[what] = load()
        except MissingExtra as error:  # said by whoever asks for a part
            self._needs = error
            return None
        except Exception as error:
            said = f"{what}: {_first_line(error)}"
            if self._failed.get(what) != said:
                _LOG.warning("a %s could not be imported: %s", self.kind, said)
            self._failed[what] = said
            for name, part in list(self._parts.items()):
                if f"{part.__module__}.".startswith(f"{what}."):
                    del self._parts[name]
            return None
        self._failed.pop(what, None)
        return self._loaded[what]

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
            if self._needs is not None:
                raise MissingExtra(str(self._needs))
            broken = "; ".join(self._failed.values())
            why = f"; not imported: {broken}" if broken else ""
            raise UserError(f"unknown {self.kind} {name!r}{suggest(name, self._parts)}{why}")
        return self._parts[name]


def _identity(part: type) -> tuple[str, str]:
    return part.__module__, part.__qualname__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def options(part: type) -> list[str]:
    """The field names of a registered part's configuration."""
    return [field.name for field in dataclasses.fields(part)]


TEACHERS = Registry("teacher", "transmamba.teachers")
STUDENTS = Registry("student", "transmamba.students")
LOSSES = Registry("loss", "transmamba.losses")
TASKS = Registry("task", "transmamba.tasks")
READERS = Registry("data reader", "transmamba.data.images")
PAIRS = Registry("pair reader", "transmamba.data.pairs")
TEXTS = Registry("text reader", "transmamba.data.text")
BENCHMARKS = Registry("benchmark", "transmamba.data.text")
GENERATED = Registry("benchmark in writing", "transmamba.data.text")
QUESTIONS = Registry("question reader", "transmamba.data.questions")
METHODS = Registry("method", "transmamba.peft.methods")
FAMILIES = Registry("mixer family", "transmamba.peft.families")
FUNCTIONS = Registry("function", "transmamba.data.functions")
