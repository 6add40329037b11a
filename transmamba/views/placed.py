"""Sublayers that do not lie whole on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import torch

from .sublayers import Sublayer


class Placed(Sequence[Sublayer]):
    """Sublayers that are made whole on the device when they are asked for, and forgotten after use.

    skeletons: the same with tensors on the meta device: shapes without numbers
    """

    skeletons: list[Sublayer]
    device: torch.device

    def __len__(self) -> int:
        return len(self.skeletons)

    @overload
    def __getitem__(self, index: int) -> Sublayer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sublayer]: ...
    def __getitem__(self, index: int | slice) -> Sublayer | Sequence[Sublayer]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.whole(index % len(self))

    def __iter__(self) -> Iterator[Sublayer]:
        return (self.whole(index) for index in range(len(self)))

    def whole(self, index: int) -> Sublayer:
        """The sublayer with its tensors on the device."""
        raise NotImplementedError

    def changed(self, function: Callable[[Sublayer], Sublayer]) -> Placed:
        """The same placement of `function` of each sublayer, one at a time."""
        raise NotImplementedError

    def on(self, device: torch.device) -> Placed:
        """The same, made whole on another device."""
        raise NotImplementedError


def skeletons(sublayers: Sequence[Sublayer]) -> Sequence[Sublayer]:
    """Their kinds and shapes, without making any of them whole."""
    return sublayers.skeletons if isinstance(sublayers, Placed) else sublayers


def changed(sublayers: Sequence[Sublayer], function: Callable[[Sublayer], Sublayer]) -> Sequence[Sublayer]:
    """`function` of each, placed as before."""
    if isinstance(sublayers, Placed):
        return sublayers.changed(function)
    return tuple(function(sublayer) for sublayer in sublayers)
