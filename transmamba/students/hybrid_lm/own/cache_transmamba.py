# SPDX-License-Identifier: Apache-2.0
"""What a model remembers of the tokens it has read. Shapes: B rows, T new tokens, S remembered ones, H heads
of P channels."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


@dataclass
class Known:
    """What layers that remember as many tokens know in one pass.

    places: (B, S) of the tokens that they may read, -1 for padding
    at:     which of them (B, K) are remembered, None for all; of a cache of fixed size into which of `slots`
        new ones go, (B, T)
    """

    places: Tensor
    at: Tensor | None = None
    slots: int = 0
    _found: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, name: Hashable, find: Callable[[], Any]) -> Any:
        """What follows from the places, found by the first layer that asks."""
        if name not in self._found:
            self._found[name] = find()
        return self._found[name]


class HybridCache(Cache):
    """Of each layer some tensors by name, rows first: of attention `keys` and `values` (B, H, S, P); of
    Mamba-2 what its convolution read last, `before` (B, taps - 1, channels), and its `state` (B, H, P, N). Of
    a window with a scan what attention has, the tokens' `steps` (B, H, S, 1), and the scan's `state`
    (B, H, P + 1, N).

    read:   tokens so far, padding included
    next:   (B,) the place of each row's next token
    placed: (B, S) the places of tokens in their texts, -1 for padding, of all layers that remember so many of
        the last tokens (None: all) and of the first ones
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self.read = 0
        self.next: Tensor | None = None
        self.placed: dict[tuple[int | None, int], Tensor] = {}
        self.held: list[dict[str, Tensor]] = [{} for _ in range(layers)]

    def __len__(self) -> int:
        return len(self.held)

    def places(self, real: Tensor) -> Tensor:
        """(B, T) places of new tokens, of which `real` (B, T) are no padding."""
        if self.next is not None and len(self.next) != len(real):
            raise ValueError(f"the cache holds {len(self.next)} rows, {len(real)} came; make another")
        counted = real.long().cumsum(dim=1)
        before = counted.new_zeros(len(real)) if self.next is None else self.next
        return torch.where(real, before[:, None] + counted - 1, -1)

    def check(self, tokens: int) -> None:
        """Raises ValueError where so many more do not fit."""

    def count(self, real: Tensor) -> None:
        """These tokens have been read."""
        self.read += real.shape[1]
        self.next = real.sum(dim=1) + (0 if self.next is None else self.next)

    def begin(self, places: Tensor, last: int | None, sinks: int) -> Known:
        """What layers know with new tokens at `places` (B, T), once a pass and kind of layer.

        last: how many of the last tokens they will read again (None: all), and of the first ones `sinks`:
            they hold no more
        """
        if (before := self.placed.get((last, sinks))) is not None:
            places = torch.cat([before, places], dim=1)
        at, self.placed[last, sinks] = _nearby(places, last, sinks)
        return Known(places, at)

    def add(self, layer: int, new: dict[str, Tensor], known: Known) -> dict[str, Tensor]:
        """Of a layer's tokens what is known, `new` itself included, each (B, H, S, ...)."""
        held = self.held[layer]
        if "keys" in held:
            new = {name: torch.cat([held[name], x], dim=2) for name, x in new.items()}
        kept = new if known.at is None else {name: chosen(x, known.at) for name, x in new.items()}
        self.held[layer] = {**held, **kept}
        return new

    def keep(self, layer: int, **state: Tensor) -> None:
        """What a layer hands on to the next tokens, by name."""
        self.held[layer] = {**self.held[layer], **state}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.read

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    get_max_cache_shape = get_max_length

    def crop(self, tokens_to_remove: int) -> None:
        raise NotImplementedError("what this model has forgotten does not come back; generate without drafts")

    def reset(self) -> None:
        self.read, self.next, self.placed, self.held = 0, None, {}, [{} for _ in self.held]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rows(lambda x: x[indices.to(x.device)])

    def _rows(self, choose: Callable[[Tensor], Tensor]) -> None:
        self.held = [{name: choose(x) for name, x in held.items()} for held in self.held]
        self.placed = {kind: choose(x) for kind, x in self.placed.items()}
        self.next = None if self.next is None else choose(self.next)


def _nearby(places: Tensor, last: int | None, sinks: int) -> tuple[Tensor | None, Tensor]:
    """Which tokens (B, K) later ones can still read, of each row the last and the first sinks, None for all;
    and their places."""
    if last is None or places.shape[1] <= (most := last + sinks):
        return None, places
    end = places.amax(dim=1, keepdim=True)
    read = (places >= 0) & ((places > end - last) | (places < sinks))
    # those first, and all in their order again
    kept = (~read).long().argsort(dim=1, stable=True)[:, :most].sort(dim=1).values
    return kept, torch.where(read, places, -1).gather(1, kept)


def chosen(x: Tensor, kept: Tensor) -> Tensor:
    """Of x (B, H, S, P) the tokens `kept` (B, K) of each row, (B, H, K, P)."""
    return x.gather(2, kept[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
