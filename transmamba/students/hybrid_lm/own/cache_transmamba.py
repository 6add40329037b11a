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
    last, `before` (B, taps - 1, channels), and its `state` (B, H, P, N).

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
        counted = real.long().cumsum(dim=1)
        before = counted.new_zeros(len(real)) if self.next is None else self.next
        return torch.where(real, before[:, None] + counted - 1, -1)

    def count(self, real: Tensor) -> None:
        """These tokens have been read."""
        self.read += real.shape[1]
        self.next = real.sum(dim=1) + (0 if self.next is None else self.next)

    def add(
        self, layer: int, keys: Tensor, values: Tensor, places: Tensor, nearby: tuple[int, int] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and places of all that new tokens may read, themselves included.

        nearby: window and sinks of a layer that forgets other tokens: it holds window + sinks - 1 at most
        """
        held = self.held[layer]
        if held:
            keys = torch.cat([held["keys"], keys], dim=2)
            values = torch.cat([held["values"], values], dim=2)
            places = torch.cat([held["places"], places], dim=1)
        self.held[layer] = {"keys": keys, "values": values, "places": places}
        if nearby is not None:
            self.held[layer] = _nearby(keys, values, places, *nearby)
        return keys, values, places

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


def _nearby(keys: Tensor, values: Tensor, places: Tensor, window: int, sinks: int) -> dict[str, Tensor]:
    """What later tokens can still read: of each row the last window - 1 tokens and the first sinks."""
    most = window + sinks - 1
    if places.shape[1] > most:
        last = places.amax(dim=1, keepdim=True)
        read = (places >= 0) & ((places > last - window + 1) | (places < sinks))
        # those first, and all in their order again
        kept = (~read).long().argsort(dim=1, stable=True)[:, :most].sort(dim=1).values
        places = torch.where(read, places, -1).gather(1, kept)
        at = kept[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        keys, values = keys.gather(2, at), values.gather(2, at)
    return {"keys": keys, "values": values, "places": places}
