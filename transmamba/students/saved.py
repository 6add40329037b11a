"""Students that transformers loads, read from their folders as modules of our own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

from torch import nn

from ..ecosystems.sources import Source


class Saved:
    """A kind of student that is one module of ours, and is read by the `stock` beside it. Both are imported
    when they are needed: reading recipes takes no model's code.

    made: the package of both, and the module's class
    """

    made: ClassVar[tuple[str, str]]

    @classmethod
    def empty(cls, source: Source) -> nn.Module:
        """The student that a configuration describes, at its start."""
        return cls._by("empty", source)

    @classmethod
    def load(cls, source: Source) -> nn.Module:
        """The student in a folder or a repository that says it is one, in evaluation mode."""
        return cls._by("load", source)

    @classmethod
    def _by(cls, way: str, source: Source) -> nn.Module:
        package, name = cls.made
        stock, model = (import_module(f"{__package__}.{package}.{file}") for file in ("stock", "model"))
        read: Callable[[Source, Any], nn.Module] = getattr(stock, way)
        return read(source, getattr(model, name))
