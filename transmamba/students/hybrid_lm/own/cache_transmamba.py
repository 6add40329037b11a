# SPDX-License-Identifier: Apache-2.0
"""What a model remembers of the tokens it has read. Shapes: B rows, T new tokens, S remembered ones, H heads
of P channels."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class HybridCache(Cache):
    """Of each layer some tensors by name, rows first: of attention `keys` and `values` (B, H, S, P), and
    `places` (B, S), the tokens' places in their texts, -1 for padding; of Mamba-2 what its convolution read
    last, `before` (B, taps - 1, channels), and its `state` (B, H, P, N). Of a window with a scan what
    attention has, the tokens' `steps` (B, H, S, 1), and the scan's `state` and `sums` (B, H, N).

    read: tokens so far, padding included
    next: (B,) the place of each row's next token
    """

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[])
        self.read = 0
        self.next: Tensor | None = None
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

    def count(self, real: Tensor) -> None:
        """These tokens have been read."""
        self.read += real.shape[1]
        self.next = real.sum(dim=1) + (0 if self.next is None else self.next)

    def add(
        self, layer: int, new: dict[str, Tensor], places: Tensor, last: int | None = None, sinks: int = 0
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Of a layer's tokens what is known, `new` itself included, each (B, H, S, ...), and their places.

        last: how many of the last tokens a layer that forgets others will read again, and of the first ones
            `sinks`: it holds no more
        """
        held = self.held[layer]
        scanned = {name: x for name, x in held.items() if name in ("state", "sums")}
        if held:
            new = {name: torch.cat([held[name], x], dim=2) for name, x in new.items()}
            places = torch.cat([held["places"], places], dim=1)
        kept = {**new, "places": places}
        self.held[layer] = scanned | (kept if last is None else _nearby(kept, last, sinks))
        return new, places

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
        self.read, self.next, self.held = 0, None, [{} for _ in self.held]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rows(lambda x: x[indices.to(x.device)])

    def _rows(self, choose: Callable[[Tensor], Tensor]) -> None:
        self.held = [{name: choose(x) for name, x in held.items()} for held in self.held]
        self.next = None if self.next is None else choose(self.next)


def _nearby(held: dict[str, Tensor], last: int, sinks: int) -> dict[str, Tensor]:
    """What later tokens can still read: of each row the last tokens and the first sinks."""
    places, most = held["places"], last + sinks
    if places.shape[1] <= most:
        return held
    end = places.amax(dim=1, keepdim=True)
    read = (places >= 0) & ((places > end - last) | (places < sinks))
    # those first, and all in their order again
    kept = (~read).long().argsort(dim=1, stable=True)[:, :most].sort(dim=1).values
    found = {name: _chosen(x, kept) for name, x in held.items() if name != "places"}
    return {**found, "places": torch.where(read, places, -1).gather(1, kept)}


def _chosen(x: Tensor, kept: Tensor) -> Tensor:
    """Of x (B, H, S, P) the tokens `kept` (B, K) of each row."""
    return x.gather(2, kept[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
