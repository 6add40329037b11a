"""The contract of a family, and how a module's is found."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...config.registry import FAMILIES
from ...errors import UserError
from .inside import Inside
from .mixer import Mixer


@dataclass(frozen=True)
class Family:
    """Mixers of some classes.

    classes: full names of the classes, or `*.file.Class` for code that comes with a model; a subclass counts
        unless it has a forward of its own
    doors:   methods of theirs that run the mixer as `forward` does; the family has each, called as `run` is
    """

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    on: ClassVar[str] = "mixer"
    doors: ClassVar[tuple[str, ...]] = ()

    def describe(self, module: Any) -> Mixer:
        """A mixer's sizes and places."""
        raise NotImplementedError

    def run(self, module: Any, inside: Inside, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward, with what is inside added; of its weights as they are at this moment."""
        raise NotImplementedError


def path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def family_of(module: nn.Module) -> Family | None:
    """None for a module of no family, and for a subclass with a forward of its own."""
    known = _by_class(tuple(FAMILIES.names()))
    for kind in type(module).__mro__:
        path = path_of(kind)
        for name in (path, f"*.{'.'.join(path.split('.')[-2:])}"):
            if name in known:
                return known[name]
        if "forward" in vars(kind):
            return None
    return None


@functools.cache
def _by_class(names: tuple[str, ...]) -> dict[str, Family]:
    families: Iterable[Any] = (FAMILIES[name] for name in names)
    return {path: family() for family in families for path in family.classes}


def refuse_packed(kwargs: dict[str, Any]) -> None:
    """UserError where a call names packed sequences in a way that a mixer cannot keep apart."""
    named = next((name for name in ("seq_idx", "cu_seqlens") if kwargs.get(name) is not None), None)
    if named is not None:
        raise UserError(
            f"{named}: an adapter works inside this mixer, which cannot keep packed sequences apart by it"
        )


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
