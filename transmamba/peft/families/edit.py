"""A mixer's weights while adapters change them, and how a mixer runs on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .mixer import Mixer, Place


class Edit:
    """weights:    the changed ones, by the parameter's path
    attributes: numbers of the module and of those in it that go with them, by dotted name
    merging:    whether the weights are to hold everything, for good
    """

    def __init__(self, module: nn.Module, mixer: Mixer, merging: bool = False) -> None:
        self.module, self.mixer, self.merging = module, mixer, merging
        self.weights: dict[str, Tensor] = {}
        self.attributes: dict[str, Any] = {}

    def weight(self, path: str) -> Tensor:
        """As it is by now."""
        return self.weights[path] if path in self.weights else self.module.get_parameter(path)

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


Swaps = list[tuple[dict[str, Any], str, Any]]


@contextmanager
def in_place(
    module: nn.Module, weights: Mapping[str, Tensor], attributes: Mapping[str, Any]
) -> Iterator[None]:
    """The module with these weights and attributes, for a while: whoever reads `.weight` reads them."""
    swaps: Swaps = []
    for path, tensor in weights.items():
        owner, _, name = path.rpartition(".")
        swaps.append((module.get_submodule(owner)._parameters, name, tensor))
    for path, value in attributes.items():
        owner, _, name = path.rpartition(".")
        swaps.append((module.get_submodule(owner).__dict__, name, value))
    kept = [table[name] for table, name, _ in swaps]
    try:
        for table, name, value in swaps:
            table[name] = value
        yield
    finally:
        for (table, name, _), value in zip(swaps, kept, strict=True):
            table[name] = value
