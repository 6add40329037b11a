"""Teachers that are never whole in any process: read block by block, of which each process keeps its slice,
or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..ecosystems.decoders import unplaced
from ..ecosystems.slices import NotByName, Slices
from ..ecosystems.sources import Source
from ..views.placed import Placed
from ..views.sublayers import Sublayer
from ..views.view import Tower
from .placement import OnDisk, Sharded
from .teacher import Teacher


def load_sharded(part: Any, source: Source, device: torch.device, group: Any = None) -> Teacher:
    """The teacher of a part (`empty`, `describe`, `original`) with its blocks sharded over `group`.

    Its configuration alone makes the modules; tensors are read by name from safetensors, a block at a time.
    Raises UserError for other files, NotByName where names or shapes are not those of the library's class.
    View and module are not compared: a file holds no adapter and no hook.
    """
    return _load(part, source, device, lambda blocks: Sharded(blocks.sublayers(), device, group))


def load_streamed(part: Any, source: Source, device: torch.device) -> Teacher:
    """The same with its blocks left in their files, each read whenever it is asked for: what is in memory is
    one of them, beside embeddings, norms and head."""
    return _load(part, source, device, lambda blocks: OnDisk(blocks.read, blocks.skeletons(), device))


def _load(part: Any, source: Source, device: torch.device, place: Callable[[_Blocks], Placed]) -> Teacher:
    slices, module = Slices(source), part.empty()
    _tie(module)
    blocks = part.original(module).blocks
    names = {each: name for name, each in module.named_modules()}
    odd = unplaced(slices.names - module.state_dict().keys())
    if odd:
        raise NotByName(f"{source.text!r} holds what its config has no place for: {odd}")
    inside = {f"{names[block]}." for of in blocks.values() for block in of}
    rest = [name for name, _ in module.named_parameters() if not name.startswith(tuple(inside))]
    _fill(module, rest, slices)
    _tie(module)
    towers = {
        name: place(_Blocks(part, module, name, [names[block] for block in of], slices))
        for name, of in blocks.items()
    }
    teacher: Teacher = (
        part.described(module) if hasattr(part, "described") else part.describe(module, source=source.text)
    )
    view = teacher.view
    kept = {
        name: replace(tower, sublayers=towers.get(name, tower.sublayers))
        for name, tower in view.towers.items()
    }
    return teacher._with(replace(view, towers=kept).to(device))


class _Blocks:
    """The blocks of a tower, whose tensors are put into the module, described and forgotten, one block at a
    time.

    names: of the blocks in `module`
    """

    def __init__(
        self, part: Any, module: nn.Module, tower: str, names: Sequence[str], slices: Slices
    ) -> None:
        self.part, self.module, self.tower, self.names, self.slices = part, module, tower, names, slices
        ends = self._tower().ends
        self.begins = [0, *(end + 1 for end in ends)]

    def read(self, s: int) -> tuple[int, Sequence[Sublayer]]:
        """The sublayers of the block that has sublayer s, and the number of the first of them."""
        t = next(t for t, begin in enumerate(self.begins[1:]) if s < begin)
        block = self.module.get_submodule(self.names[t])
        held = [f"{self.names[t]}.{name}" for name, _ in block.named_parameters()]
        _fill(self.module, held, self.slices)
        made = self._tower().sublayers[self.begins[t] : self.begins[t + 1]]
        _forget(self.module, held)
        return self.begins[t], made

    def sublayers(self) -> Iterator[Sublayer]:
        for begin in self.begins[:-1]:
            yield from self.read(begin)[1]

    def skeletons(self) -> Sequence[Sublayer]:
        """Shapes without numbers, of which nothing is read."""
        found: Sequence[Sublayer] = self._tower().sublayers
        return found

    def _tower(self) -> Tower:
        found: Tower = self.part.describe(self.module, source="").view.towers[self.tower]
        return found


def _fill(module: nn.Module, names: Sequence[str], slices: Slices) -> None:
    """Put the checkpoint's tensors where the module has its own on the meta device."""
    absent = unplaced(set(names) - slices.names)
    if absent:
        raise NotByName(f"{slices.text!r} lacks {absent}")
    found = slices.read(names)
    dtype = getattr(getattr(module, "config", None), "dtype", None)
    for name in names:
        owner, _, last = name.rpartition(".")
        tensor, place = found[name], module.get_submodule(owner)
        old = place.get_parameter(last)
        if tensor.shape != old.shape:
            raise NotByName(
                f"{slices.text!r}: {name} is {tuple(tensor.shape)}, its config says {tuple(old.shape)}"
            )
        # one type for all, as the library loads it
        tensor = tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
        setattr(place, last, nn.Parameter(tensor, requires_grad=False))


def _tie(module: Any) -> None:
    """Make a head that is the embedding one parameter with it, as it is saved."""
    if hasattr(module, "tie_weights"):
        module.tie_weights()


def _forget(module: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        owner, _, last = name.rpartition(".")
        place = module.get_submodule(owner)
        setattr(place, last, nn.Parameter(place.get_parameter(last).to("meta"), requires_grad=False))
