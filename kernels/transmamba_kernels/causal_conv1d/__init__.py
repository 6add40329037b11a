"""The short depthwise convolution in front of every Mamba scan."""

from __future__ import annotations

from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_rank
from . import cpu, reference

__all__ = ["causal_conv1d"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """y_t = act(bias + sum over j of weight[:, j] x_(t - K + 1 + j)), for every channel on its own.

    x, y: (B, L, D). weight: (D, K). bias: (D,). activation: None or "silu". `initial_state` (B, D, K-1): the
    tokens before the first, oldest first; zeros where None. `reverse` is flip of this of flip: token t sees t
    ... t + K - 1, and the last column of `initial_state` is the token right behind the last one. y has x's
    dtype.

    Raises ValueError for a shape that does not fit and for an unknown activation.
    """
    expect_rank("x", x, "(B, L, D)")
    expect_rank("weight", weight, "(D, K)")
    (batch, _, channels), taps = x.shape, weight.shape[1]
    expect("weight", weight, "(D, K)", channels, taps)
    expect("bias", bias, "(D,)", channels)
    expect("initial_state", initial_state, "(B, D, K-1)", batch, channels, taps - 1)
    if taps < 1:
        raise ValueError("weight: shape (D, 0), expected (D, K) with K of at least 1")
    if activation not in (None, "silu"):
        raise ValueError(f"activation: {activation!r}, expected None or 'silu'")
    path = choose("causal_conv1d", x)
    run = reference.causal_conv1d if path == "reference" else cpu.causal_conv1d
    return run(x, weight, bias, activation, initial_state, reverse)
