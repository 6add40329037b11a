"""What transformers' mixers share when they run by pieces: padding, the convolution, their cache.

Layouts are transformers': sequences (B, D, L) around the convolution. In a decode step without gradients the
cache's own states are moved on in place, as transformers does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transmamba_kernels import compat


def padded(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """hidden (B, L, D) with zeros where the mask (B, P + L), also of P tokens that were read before, is 0."""
    # transformers before 5.21 hands on the mask of all
    return hidden if mask is None else (hidden * mask[:, -hidden.shape[1] :, None]).to(hidden.dtype)


def states_of(mixer: Any, cache: Any) -> tuple[Tensor | None, Tensor | None]:
    """The states of convolution and scan that a cache holds for a mixer, the objects themselves; None of one
    that has read nothing. Of the cache's layer, for the cache itself tells them from transformers 5.21 on."""
    if cache is None or mixer.layer_idx >= len(cache.layers):
        return None, None
    layer = cache.layers[mixer.layer_idx]
    if not layer.has_previous_state[0]:  # after a reset they are there, and zeros
        return None, None
    return layer.conv_states[0], layer.recurrent_states[0]


def steps(length: int, state: Tensor | None) -> bool:
    """Whether it is a decode step that moves states in place: those have no gradients."""
    return length == 1 and state is not None and not torch.is_grad_enabled()


def _records(cache: Any, mixer: Any) -> bool:
    """Whether a cache keeps what it read, so as to take tokens back."""
    return bool(getattr(cache.layers[mixer.layer_idx], "record_past", False))


def convolved(
    mixer: Any, x: Tensor, cache: Any, state: Tensor | None, seq_idx: Tensor | None = None
) -> Tensor:
    """The convolution and activation of x (B, D, L), the cache moved on."""
    length = x.shape[-1]
    weight, bias = mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias
    fused = mixer.activation if mixer.activation in ("silu", "swish") else None
    if steps(length, state) and not _records(cache, mixer):
        assert state is not None
        y = compat.causal_conv1d_update(x, state, weight, bias, activation=fused)
    else:
        if cache is not None:
            x = cache.update_conv_state(x, mixer.layer_idx, conv_kernel_size=mixer.conv_kernel_size)
        made: Any = compat.causal_conv1d_fn(x, weight, bias, seq_idx, activation=fused)
        y = made[:, :, -length:]
    return y if fused else mixer.act(y)
