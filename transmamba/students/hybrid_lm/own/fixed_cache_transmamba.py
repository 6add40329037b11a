# SPDX-License-Identifier: Apache-2.0
"""A cache whose tensors keep their sizes and addresses. Shapes: B rows, T new tokens, S places for tokens, H
heads of P channels."""

from typing import Any

import torch
from torch import Tensor

from .cache_transmamba import HybridCache

_WHOLE = 8  # keys are a multiple of so many, as kernels of attention with a mask want it


class FixedHybridCache(HybridCache):
    """Once something has been read, one more token is read in place and, in layers without experts, without
    waiting for the device, so that such a step can be recorded as a CUDA graph. Who replays a recording calls
    `advance` before, for that runs none of this code. It is of one number of rows, also after `reset`; beams
    that change rows move its tensors.

    length: of tokens with padding, the most that are read; layers that forget others have room for those that
        they read again

    A token lies where its place in its text says: in its own slot, or, in a layer that forgets, in one of a
    ring behind the first tokens' own. The last slot is for what nobody reads: padding, and what is forgotten
    already.
    """

    def __init__(self, layers: int, length: int) -> None:
        super().__init__(layers)
        if length < 1:
            raise ValueError(f"length is {length}; write at least 1")
        self.length = length

    def count(self, real: Tensor) -> None:
        self.read += real.shape[1]
        if self.next is None:
            self.next = real.sum(dim=1)
        else:
            self.next += real.sum(dim=1)

    def advance(self, tokens: int = 1) -> None:
        """So many are read by a recording. Raises ValueError where they do not fit."""
        self._check(tokens)
        self.read += tokens

    def _check(self, tokens: int) -> None:
        if self.read + tokens > self.length:
            raise ValueError(
                f"{self.read + tokens} tokens do not fit into a cache of {self.length}; make a longer one"
            )

    def add(
        self, layer: int, new: dict[str, Tensor], places: Tensor, last: int | None = None, sinks: int = 0
    ) -> tuple[dict[str, Tensor], Tensor]:
        self._check(places.shape[1])
        ring = self.length if last is None else last + 1
        first = "places" not in self.held[layer]
        if first:
            self.held[layer] |= _empty(new, places, sinks + ring + 1)
        held = self.held[layer]
        if places.shape[1] == 1:
            _put(held, new, places, slots_of(places, ring, sinks, held["places"].shape[1]))
            return {name: held[name] for name in new}, held["places"]
        known, theirs = dict(new), places
        if self.read:
            known = {name: torch.cat([held[name], x], dim=2) for name, x in new.items()}
            theirs = torch.cat([held["places"], places], dim=1)
        still = places
        if last is not None:
            end = places.amax(dim=1, keepdim=True)
            still = torch.where((places > end - last) | (places < sinks), places, -1)
        _put(held, new, still, slots_of(still, ring, sinks, held["places"].shape[1]))
        return known, theirs

    def keep(self, layer: int, **state: Tensor) -> None:
        held = self.held[layer]
        for name, x in state.items():
            if name in held:
                held[name].copy_(x)
            else:
                held[name] = x.clone()

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.length

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Nothing has been read; tensors stay where they are."""
        self.read = 0
        if self.next is not None:
            self.next.zero_()
        for held in self.held:
            for name, x in held.items():
                x.fill_(-1 if name == "places" else 0)


def _empty(new: dict[str, Tensor], places: Tensor, slots: int) -> dict[str, Tensor]:
    slots = -(-slots // _WHOLE) * _WHOLE
    found = {name: x.new_zeros(*x.shape[:2], slots, *x.shape[3:]) for name, x in new.items()}
    return {**found, "places": places.new_full((len(places), slots), -1)}


def slots_of(places: Tensor, ring: int, sinks: int, slots: int) -> Tensor:
    """Where tokens of these places lie, (...) both, in a layer of so many slots."""
    own = torch.where(places < sinks, places, sinks + (places - sinks) % ring)
    return torch.where(places < 0, slots - 1, own)


def _put(held: dict[str, Tensor], new: dict[str, Any], places: Tensor, slots: Tensor) -> None:
    for name, x in new.items():
        held[name].scatter_(2, slots[:, None, :, None].expand_as(x), x.to(held[name].dtype))
    held["places"].scatter_(1, slots, places)
