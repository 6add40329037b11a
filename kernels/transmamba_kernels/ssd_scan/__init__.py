"""The state-space-duality scan of Mamba-2, https://arxiv.org/abs/2405.21060: one decay a head and step."""

from __future__ import annotations

from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_groups, expect_rank
from . import cpu, reference

__all__ = ["check", "ssd_scan"]


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t (x) B_t; y_t = h_t C_t + D x_t, for every head.

    x, y: (B, L, H, P). delta: (B, L, H). A: (H,), negative. B, C: (B, L, G, N) where G divides H and group g
    serves the heads g H/G to (g+1) H/G - 1. D, delta_bias: (H,). dt = delta + delta_bias, through a softplus
    with `delta_softplus`. `initial_state` and the final state: (B, H, P, N). `reverse` runs from the last
    token to the first. y has x's dtype.

    Raises ValueError for a shape that does not fit.
    """
    check(x, delta, A, B, C, D, delta_bias, initial_state)
    run = reference.ssd_scan if choose("ssd_scan", x) == "reference" else cpu.ssd_scan
    y, state = run(x, delta, A, B, C, D, delta_bias, delta_softplus, initial_state, reverse)
    return (y, state) if return_final_state else y


def check(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> None:
    """Raises ValueError for the first shape that does not fit."""
    expect_rank("x", x, "(B, L, H, P)")
    expect_rank("B", B, "(B, L, G, N)")
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    expect("delta", delta, "(B, L, H)", batch, length, heads)
    expect("A", A, "(H,)", heads)
    expect_groups("B", groups, heads, "heads")
    expect("B", B, "(B, L, G, N)", batch, length, groups, states)
    expect("C", C, "(B, L, G, N)", batch, length, groups, states)
    expect("D", D, "(H,)", heads)
    expect("delta_bias", delta_bias, "(H,)", heads)
    expect("initial_state", initial_state, "(B, H, P, N)", batch, heads, width, states)
