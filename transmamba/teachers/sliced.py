"""A teacher that is never whole in any process: read block by block, each process keeping its slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..ecosystems.decoders import unplaced
from ..ecosystems.slices import NotByName, Slices
from ..ecosystems.sources import Source
from ..views.sublayers import Sublayer
from .placement import Sharded
from .teacher import Teacher


def load_sharded(part: Any, source: Source, device: torch.device, group: Any = None) -> Teacher:
    """The teacher of a part (`empty`, `describe`, `original`) with its blocks sharded over `group`.

    Its configuration alone makes the modules; tensors are read by name from safetensors, a block at a time.
    Raises UserError for other files, NotByName where names or shapes are not those of the library's class.
    View and module are not compared: a file holds no adapter and no hook.
    """
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
        name: Sharded(_sublayers(part, module, name, of, names, slices), device, group)
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


def _sublayers(
    part: Any,
    module: nn.Module,
    tower: str,
    blocks: Sequence[nn.Module],
    names: dict[nn.Module, str],
    slices: Slices,
) -> Iterator[Sublayer]:
    """Each block's sublayers with their tensors, which are forgotten before the next block is read."""
    for t, block in enumerate(blocks):
        held = [f"{names[block]}.{name}" for name, _ in block.named_parameters()]
        _fill(module, held, slices)
        view = part.describe(module, source="").view.towers[tower]
        begin = view.ends[t - 1] + 1 if t else 0
        yield from view.sublayers[begin : view.ends[t] + 1]
        _forget(module, held)


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
