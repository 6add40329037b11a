"""Where a teacher's blocks lie when they do not lie whole on the device: on the host, brought over one by
one; a slice of each on every process, gathered one by one; or in the files that they are read from.

Embeddings, norms and heads stay whole on the device. Everything is read only, so nothing is ever sent back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..views.placed import Placed
from ..views.sublayers import Sublayer, map_tensors
from ..views.view import View

PLACEMENTS = ("resident", "offloaded", "sharded")


class Offloaded(Placed):
    """In the host's memory, pinned where there is a GPU; the next sublayer is copied while one is at work."""

    def __init__(self, sublayers: Sequence[Sublayer], device: torch.device) -> None:
        self.device = device
        pinned = device.type == "cuda"
        self.kept = [map_tensors(sublayer, lambda t: _on_host(t, pinned)) for sublayer in sublayers]
        self.skeletons = [_skeleton(sublayer) for sublayer in self.kept]
        self.ahead: tuple[int, Sublayer, torch.cuda.Event] | None = None
        self.stream = torch.cuda.Stream(device) if pinned else None

    def whole(self, index: int) -> Sublayer:
        if self.stream is None:
            return cast(Sublayer, map_tensors(self.kept[index], lambda tensor: tensor.to(self.device)))
        if self.ahead is None or self.ahead[0] != index:
            self._fetch(index)
        assert self.ahead is not None, "it was fetched"
        _, made, copied = self.ahead
        here = torch.cuda.current_stream(self.device)
        here.wait_event(copied)
        # its memory was taken on the other stream: it may be given away only after the work of this one
        map_tensors(made, lambda tensor: _used(tensor, here))
        if index + 1 < len(self):
            self._fetch(index + 1)
        else:
            self.ahead = None
        return made

    def _fetch(self, index: int) -> None:
        assert self.stream is not None, "there is a GPU"
        with torch.cuda.stream(self.stream):
            made = map_tensors(self.kept[index], lambda t: t.to(self.device, non_blocking=True))
            copied = torch.cuda.Event()
            copied.record(self.stream)
        self.ahead = (index, made, copied)

    def changed(self, function: Callable[[Sublayer], Sublayer]) -> Placed:
        return Offloaded([function(sublayer) for sublayer in self.kept], self.device)

    def on(self, device: torch.device) -> Placed:
        return self if device == self.device else Offloaded(self.kept, device)


class Sharded(Placed):
    """A slice on each process of `group`, gathered by all of them at once: every process asks for the same
    sublayers in the same order."""

    def __init__(
        self, sublayers: Iterator[Sublayer] | Sequence[Sublayer], device: torch.device, group: Any = None
    ) -> None:
        self.device, self.group = device, group
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.skeletons, self.slices = [], []
        for sublayer in sublayers:
            self.skeletons.append(_skeleton(sublayer))
            self.slices.append(self._sliced(sublayer))

    def _sliced(self, sublayer: Sublayer) -> dict[torch.dtype, Tensor]:
        """This process's part of its numbers, all tensors of a type one after the other."""
        parts: dict[torch.dtype, list[Tensor]] = {}
        map_tensors(sublayer, lambda t: _collected(t, parts))
        return {dtype: self._mine(tensors) for dtype, tensors in parts.items()}

    def _mine(self, tensors: Sequence[Tensor]) -> Tensor:
        size = self._share(sum(tensor.numel() for tensor in tensors))
        mine = torch.zeros(size, dtype=tensors[0].dtype, device=self.device)
        begin, at = self.rank * size, 0
        for tensor in tensors:  # no copy of all of them, only of what is kept
            first, last = max(begin, at), min(begin + size, at + tensor.numel())
            if first < last:
                mine[first - begin : last - begin] = tensor.reshape(-1)[first - at : last - at]
            at += tensor.numel()
        return mine

    def _share(self, count: int) -> int:
        return math.ceil(count / self.ranks)

    def whole(self, index: int) -> Sublayer:
        full: dict[torch.dtype, Tensor] = {}
        for dtype, mine in self.slices[index].items():
            full[dtype] = mine.new_empty(self.ranks * len(mine))
            dist.all_gather_into_tensor(full[dtype], mine, group=self.group)
        taken = dict.fromkeys(full, 0)

        def cut(like: Tensor) -> Tensor:
            begin = taken[like.dtype]
            taken[like.dtype] += like.numel()
            return full[like.dtype][begin : begin + like.numel()].view(like.shape)

        return cast(Sublayer, map_tensors(self.skeletons[index], cut))

    def changed(self, function: Callable[[Sublayer], Sublayer]) -> Placed:
        return Sharded((function(sublayer) for sublayer in self), self.device, self.group)

    def on(self, device: torch.device) -> Placed:
        if device == self.device:
            return self
        moved = Sharded((), device, self.group)
        moved.skeletons = self.skeletons
        moved.slices = [{dtype: t.to(device) for dtype, t in each.items()} for each in self.slices]
        return moved


class OnDisk(Placed):
    """In a checkpoint's files: the block of a sublayer is read when it is asked for, and forgotten when
    another's is.

    read: sublayer -> the sublayers of its block, and the number of the first of them
    """

    def __init__(
        self,
        read: Callable[[int], tuple[int, Sequence[Sublayer]]],
        sublayers: Sequence[Sublayer],
        device: torch.device,
    ) -> None:
        self.read, self.device = read, device
        self.skeletons = [_skeleton(sublayer) for sublayer in sublayers]
        self.last: dict[int, Sublayer] = {}

    def whole(self, index: int) -> Sublayer:
        if index not in self.last:
            self.last = {}  # before the next is read
            begin, block = self.read(index)
            self.last = {begin + i: self._here(sublayer) for i, sublayer in enumerate(block)}
        return self.last[index]

    def _here(self, sublayer: Sublayer) -> Sublayer:
        return cast(Sublayer, map_tensors(sublayer, lambda tensor: tensor.detach().to(self.device)))

    def changed(self, function: Callable[[Sublayer], Sublayer]) -> Placed:
        def read(index: int) -> tuple[int, Sequence[Sublayer]]:
            begin, block = self.read(index)
            return begin, [function(sublayer) for sublayer in block]

        return OnDisk(read, [function(sublayer) for sublayer in self], self.device)

    def on(self, device: torch.device) -> Placed:
        return self if device == self.device else OnDisk(self.read, self.skeletons, device)


def place(view: View, placement: str, device: torch.device) -> View:
    """The view with its blocks so placed, and the rest on the device."""
    assert placement in PLACEMENTS, "the configuration has looked"
    if placement == "resident":
        whole = {
            name: replace(tower, sublayers=tuple(tower.sublayers)) for name, tower in view.towers.items()
        }
        return replace(view, towers=whole).to(device)
    kind = Offloaded if placement == "offloaded" else Sharded
    bare = {name: replace(tower, sublayers=()) for name, tower in view.towers.items()}
    moved = replace(view, towers=bare).to(device)
    towers = {
        name: replace(moved.towers[name], sublayers=kind(tower.sublayers, device))
        for name, tower in view.towers.items()
    }
    return replace(moved, towers=towers)


def _skeleton(sublayer: Sublayer) -> Sublayer:
    return cast(Sublayer, map_tensors(sublayer, lambda tensor: tensor.to("meta")))


def _on_host(tensor: Tensor, pinned: bool) -> Tensor:
    kept = tensor.detach().to("cpu")
    return kept.contiguous().pin_memory() if pinned else kept


def _used(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor


def _collected(tensor: Tensor, parts: dict[torch.dtype, list[Tensor]]) -> Tensor:
    parts.setdefault(tensor.dtype, []).append(tensor.detach())
    return tensor
