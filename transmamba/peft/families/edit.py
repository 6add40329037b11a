"""A mixer's weights while adapters change them, and how a mixer runs on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .mixer import Mixer, Place

# a module's table of parameters, or of its attributes, a name in it, and what stands there for a while
Swap = tuple[dict[str, Any], str, Any]


def home(module: nn.Module, owner: nn.Module | None, path: str) -> tuple[nn.Module, str]:
    """Which module has the parameter or number at a path, and under what name: behind a slash it is one of
    the model's that the module begins (`owner`)."""
    if path.startswith("/"):
        assert owner is not None, "an owner's parameters are named where there is one"
        return owner, path[1:]
    inner, _, name = path.rpartition(".")
    return module.get_submodule(inner), name


class Edit:
    """weights:    the changed ones, by the parameter's path, see `home`
    attributes: numbers of the module and of those in it that go with them, by dotted name
    merging:    whether the weights are to hold everything, for good
    """

    def __init__(
        self, module: nn.Module, mixer: Mixer, merging: bool = False, owner: nn.Module | None = None
    ) -> None:
        self.module, self.mixer, self.merging, self.owner = module, mixer, merging, owner
        self.weights: dict[str, Tensor] = {}
        self.attributes: dict[str, Any] = {}

    def weight(self, path: str) -> Tensor:
        """As it is by now."""
        if path in self.weights:
            return self.weights[path]
        module, name = home(self.module, self.owner, path)
        return module.get_parameter(name)

    def attribute(self, name: str) -> Any:
        return self.attributes[name] if name in self.attributes else getattr(self.module, name)

    def add(self, place: Place, delta: Tensor) -> None:
        """Add to a place's rows, in the weight's dtype."""
        whole = self.weight(place.path)
        rows = whole[place.start : place.stop]
        changed = rows + delta.to(rows.dtype)
        if rows.shape[0] == whole.shape[0]:
            self.weights[place.path] = changed
            return
        parts = [whole[: place.start], changed]
        if place.stop is not None:
            parts.append(whole[place.stop :])
        self.weights[place.path] = torch.cat(parts)

    def swaps(self) -> list[Swap]:
        """What is to be put where."""
        swaps: list[Swap] = []
        for path, tensor in self.weights.items():
            module, name = home(self.module, self.owner, path)
            swaps.append((module._parameters, name, tensor))
        for path, value in self.attributes.items():
            module, name = home(self.module, self.owner, path)
            swaps.append((module.__dict__, name, value))
        return swaps


class InPlace:
    """A module with other weights and numbers, for a while: whoever reads `.weight` reads them."""

    def __init__(self, swaps: list[Swap]) -> None:
        self._swaps = swaps

    def __enter__(self) -> None:
        self._kept = [table[name] for table, name, _ in self._swaps]
        for table, name, value in self._swaps:
            table[name] = value

    def __exit__(self, *error: object) -> None:
        for (table, name, _), value in zip(self._swaps, self._kept, strict=True):
            table[name] = value
