"""causal-conv1d's two functions, over (B, D, L)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..causal_conv1d import causal_conv1d
from ..causal_conv1d import causal_conv1d_update as conv_update
from .slots import step_in_slots


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """x, out: (B, D, L). weight: (D, K). bias: (D,). seq_idx: (B, L), negative in padding, whose out is 0.
    initial_states, final states: (B, D, K-1). activation: None, "silu" or "swish".
    """
    inputs = (x.transpose(1, 2), weight, bias, silu_name(activation), initial_states)
    if not return_final_states:
        return causal_conv1d(*inputs, seq_idx=seq_idx).transpose(1, 2)
    y, state = causal_conv1d(*inputs, seq_idx=seq_idx, return_final_state=True)
    if final_states_out is not None:
        state = final_states_out.copy_(state)
    return y.transpose(1, 2), state


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """x, out: (B, D) or (B, D, L), the next tokens. conv_state: (B, D, S), S at least K - 1, the last S
    tokens, moved on in place; with `conv_state_indices` (B,) these rows of it, where a negative index is
    padding: its out is 0, and no state moves. No gradients.

    Raises ValueError for `cache_seqlens`: circular states are not built.
    """
    if cache_seqlens is not None:
        raise ValueError("cache_seqlens: a tensor, expected None: circular states are not built")
    taps, kept = weight.shape[1], conv_state.shape[-1]
    if kept < taps - 1:
        raise ValueError(
            f"conv_state: shape {tuple(conv_state.shape)}, expected (B, D, S), S at least {taps - 1}"
        )

    def step(state: Tensor) -> Tensor:
        return _step(x, state, weight, bias, silu_name(activation))

    with torch.no_grad():
        if conv_state_indices is None:
            return step(conv_state)
        return step_in_slots("conv_state_indices", conv_state, conv_state_indices, len(x), step)


def _step(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """out of x, both (B, D) or (B, D, L); moves the states (B, D, S) on."""
    kept = state.shape[-1]
    if x.dim() == 3 and x.shape[2] != 1:
        before = state[..., kept - (weight.shape[1] - 1) :]
        y = causal_conv1d(x.transpose(1, 2), weight, bias, activation, before).transpose(1, 2)
        state.copy_(torch.cat([state, x.to(state.dtype)], dim=-1)[..., -kept:])
        return y
    token = x.squeeze(2) if x.dim() == 3 else x
    return conv_update(token, state, weight, bias, activation).view(x.shape)


def silu_name(activation: str | None) -> str | None:
    return "silu" if activation == "swish" else activation
