# SPDX-License-Identifier: Apache-2.0
"""A cache whose tensors keep their sizes and addresses. Shapes: B rows, T new tokens, S places for tokens, H
heads of P channels."""

import torch
from torch import Tensor

from .cache_transmamba import HybridCache, Known

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
        self.check(tokens)
        self.read += tokens

    def check(self, tokens: int) -> None:
        if self.read + tokens > self.length:
            raise ValueError(
                f"{self.read + tokens} tokens do not fit into a cache of {self.length}; make a longer one"
            )

    def begin(self, places: Tensor, last: int | None, sinks: int) -> Known:
        self.check(places.shape[1])
        ring = self.length if last is None else last + 1
        if (placed := self.placed.get((last, sinks))) is None:
            slots = -(-(sinks + ring + 1) // _WHOLE) * _WHOLE
            placed = self.placed[last, sinks] = places.new_full((len(places), slots), -1)
        still, theirs = places, placed
        if places.shape[1] > 1:
            theirs = torch.cat([placed, places], dim=1) if self.read else places
            if last is not None:
                end = places.amax(dim=1, keepdim=True)
                still = torch.where((places > end - last) | (places < sinks), places, -1)
        at = slots_of(still, ring, sinks, placed.shape[1])
        placed.scatter_(1, at, still)
        return Known(theirs, at, placed.shape[1])

    def add(self, layer: int, new: dict[str, Tensor], known: Known) -> dict[str, Tensor]:
        held = self.held[layer]
        for name, x in new.items():
            if name not in held:
                held[name] = x.new_zeros(*x.shape[:2], known.slots, *x.shape[3:])
        found = held
        if new["keys"].shape[2] > 1:
            found = {name: torch.cat([held[name], x], dim=2) if self.read else x for name, x in new.items()}
        assert known.at is not None, "as `begin` made it"
        for name, x in new.items():
            at = known.at[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
            held[name].scatter_(2, at, x.to(held[name].dtype))
        return {name: found[name] for name in new}

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
        for x in self.placed.values():
            x.fill_(-1)
        for held in self.held:
            for x in held.values():
                x.zero_()


def slots_of(places: Tensor, ring: int, sinks: int, slots: int) -> Tensor:
    """Where tokens of these places lie, (...) both, in a layer of so many slots."""
    own = torch.where(places < sinks, places, sinks + (places - sinks) % ring)
    return torch.where(places < 0, slots - 1, own)
