"""The caches that `bench decode` writes into: transformers' static one, and that of fixed size of a hybrid of
our own class. Both are filled with random numbers, as if so many tokens had been read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..students.hybrid_lm.own.fixed_cache_transmamba import slots_of
from ..students.hybrid_lm.own_class import own_config


def is_own(config: Any) -> bool:
    return isinstance(config, own_config())


def static_cache(model: Any, length: int) -> Any:
    """Of `length` tokens, all in place: keys and values of attention, states of Mamba-2."""
    if is_own(model.config):
        return model.fixed_cache(length)
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=length)


def pretend(cache: Any, tokens: int) -> None:
    """As if it had read so many, where a few were: keys and values are random."""
    for tensors in _tensors(cache):
        for name in ("keys", "values"):
            if name in tensors:
                tensors[name].normal_()
    for (last, sinks), places in getattr(cache, "placed", {}).items():
        _place(places, last, sinks, tokens)
    go_to(cache, tokens)


def go_to(cache: Any, tokens: int) -> None:
    """The next token is that after `tokens`. States go on, which have no length."""
    if hasattr(cache, "held"):
        cache.read = tokens
        cache.next.fill_(tokens)
        return
    for layer in cache.layers:
        if getattr(layer, "keys", None) is not None:
            layer.cumulative_length.fill_(tokens)


def _place(places: Tensor, last: int | None, sinks: int, tokens: int) -> None:
    """(B, S) of a layer that remembers these: where the last tokens that it can hold would lie, and the
    first."""
    ring = places.shape[1] if last is None else last + 1
    read = torch.arange(tokens, device=places.device)
    read = read[(read < sinks) | (read >= tokens - ring)]
    places.fill_(-1)
    places[:, slots_of(read, ring, sinks, places.shape[1])] = read


def cache_bytes(cache: Any) -> int:
    """Of all tensors that a cache holds."""
    return sum(x.numel() * x.element_size() for tensors in _tensors(cache) for x in tensors.values())


def _tensors(cache: Any) -> Iterator[dict[str, Tensor]]:
    """Of each layer, by name; of our own class also what several of them share."""
    if hasattr(cache, "held"):
        yield from cache.held
        yield {str(kind): places for kind, places in cache.placed.items()}
        return
    for layer in cache.layers:
        found = {name: getattr(layer, name, None) for name in ("keys", "values")}
        for name in ("conv_states", "recurrent_states"):
            found |= {f"{name}.{key}": x for key, x in (getattr(layer, name, None) or {}).items()}
        yield {name: x for name, x in found.items() if x is not None}
