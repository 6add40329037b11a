"""The short depthwise convolution in front of every Mamba scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_integers, expect_rank
from . import cpu, reference

__all__ = ["causal_conv1d", "causal_conv1d_update"]


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    return_final_state: Literal[False] = False,
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    return_final_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y_t = act(bias + sum over j of weight[:, j] x_(t - K + 1 + j)), for every channel on its own.

    x, y: (B, L, D). weight: (D, K). bias: (D,). activation: None or "silu". `initial_state` (B, D, K-1): the
    tokens before the first, oldest first; zeros where None. `reverse` is flip of this of flip: token t sees t
    ... t + K - 1, and the last column of `initial_state` is the token right behind the last one. `seq_idx`
    (B, L), integers: the window is emptied wherever the id changes; `initial_state` belongs to the sequence
    that is met first. A negative id is padding: the token is skipped, its output and gradients are 0, no
    state moves on it, and what is met behind it begins empty. `lengths` (B,), integers in 0 to L: the tokens
    behind are right padding, which no token sees and whose outputs and gradients are 0. `return_final_state`
    gives (y, state), the state (B, D, K-1) in x's dtype being what the next call needs as its
    `initial_state`. y has x's dtype.

    Raises ValueError for a shape or dtype that does not fit, for tensors on several devices, and for an
    unknown activation.
    """
    expect_floating(x=x, weight=weight, bias=bias, initial_state=initial_state)
    expect_rank("x", x, "(B, L, D)")
    (batch, length, channels), taps = x.shape, _check_filter(x, weight, bias, activation)
    expect("initial_state", initial_state, "(B, D, K-1)", batch, channels, taps - 1)
    expect("seq_idx", seq_idx, "(B, L)", batch, length)
    expect("lengths", lengths, "(B,)", batch)
    expect_integers(x.device, seq_idx=seq_idx, lengths=lengths)
    path = choose("causal_conv1d", x, weight, bias, initial_state)
    run: Callable[..., tuple[Tensor, Tensor | None]]
    if path == "triton":
        from . import gpu

        run = gpu.causal_conv1d
    else:
        run = reference.causal_conv1d if path == "reference" else cpu.causal_conv1d
    y, state = run(
        x=x,
        weight=weight,
        bias=bias,
        activation=activation,
        initial_state=initial_state,
        reverse=reverse,
        seq_idx=seq_idx,
        lengths=lengths,
        return_final_state=return_final_state,
    )
    if not return_final_state:
        return y
    assert state is not None
    return y, state


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """One token of `causal_conv1d`: y (B, D) of x (B, D), whose tokens before are `state` (B, D, S), S at
    least K - 1, oldest first.

    The state, of any floating-point dtype, is moved on in place; no gradients. weight: (D, K). bias: (D,).

    Raises ValueError as `causal_conv1d` does.
    """
    expect_floating(x=x, state=state, weight=weight, bias=bias)
    expect_rank("x", x, "(B, D)")
    taps = _check_filter(x, weight, bias, activation)
    expect_rank("state", state, "(B, D, S)")
    expect("state", state, "(B, D, S), S at least K-1,", *x.shape, max(state.shape[2], taps - 1))
    path = choose("causal_conv1d_update", x, state, weight, bias)
    run: Callable[..., Tensor]
    if path == "triton":
        from . import gpu

        run = gpu.causal_conv1d_update
    else:
        run = reference.causal_conv1d_update if path == "reference" else cpu.causal_conv1d_update
    with torch.no_grad():
        return run(x=x, state=state, weight=weight, bias=bias, activation=activation)


def _check_filter(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> int:
    """K; raises ValueError for a filter that does not fit x (..., D), or an unknown activation."""
    expect_rank("weight", weight, "(D, K)")
    channels, taps = x.shape[-1], weight.shape[1]
    expect("weight", weight, "(D, K)", channels, taps)
    expect("bias", bias, "(D,)", channels)
    if taps < 1:
        raise ValueError("weight: shape (D, 0), expected (D, K) with K of at least 1")
    if activation not in (None, "silu"):
        raise ValueError(f"activation: {activation!r}, expected None or 'silu'")
    return taps
