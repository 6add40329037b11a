"""Layers of transformers' models that hold zeros alone and add nothing to the stream.

A student without attention has one of attention at its end, for the class's cache counts tokens by it, and
its config.json says so: `"transmamba": {"null": 1}`.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# By layer: which tensors were looked at, and whether they were zeros.
_seen: WeakKeyDictionary[nn.Module, tuple[list[tuple[int, int]], bool]] = WeakKeyDictionary()


def layer_of_zeros(layer: Any, stream: Tensor) -> bool:
    """Whether a decoder layer is one that the configuration calls null, of zeros still, and nobody waits for
    what its modules say. The first time of a layer, and again after its tensors have changed, this waits for
    the device; where that is not allowed, in a recording, the answer is no.
    """
    attention = getattr(layer, "self_attn", None)
    if attention is None:
        return False
    config = attention.config
    nulls = (getattr(config, "transmamba", None) or {}).get("null", 0)
    if attention.layer_idx < config.num_hidden_layers - nulls:
        return False
    if torch.is_autocast_enabled(stream.device.type):  # under which keys have another dtype
        return False
    modules = list(layer.modules())
    if any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules):
        return False
    tensors = list(layer.parameters())
    if any(x.is_meta or x.is_inference() or x.dtype != stream.dtype for x in tensors):
        return False
    versions = [(x.data_ptr(), x._version) for x in tensors]
    known, zeros = _seen.get(layer, (None, False))
    if known == versions:
        return zeros
    if stream.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    zeros = not any(bool(x.any()) for x in tensors)
    _seen[layer] = versions, zeros
    return zeros


def count_tokens(cache: Any, attention: Any, stream: Tensor) -> None:
    """A layer of zeros' tokens (B, L, d) in a cache. A static one holds zeros where they would be written:
    nothing but its count is changed, also beyond its length.
    """
    tokens, at = stream.shape[1], attention.layer_idx
    layer = cache.layers[at] if at < len(cache.layers) else None
    static = type(layer).__name__ == "StaticLayer" and not getattr(cache, "offloading", False)
    if layer is not None and static and layer.is_initialized:
        layer.cumulative_length.add_(tokens)
        return
    shape = (len(stream), attention.config.num_key_value_heads, tokens, attention.head_dim)
    zeros = stream.new_zeros(shape)
    cache.update(zeros, zeros, at)
