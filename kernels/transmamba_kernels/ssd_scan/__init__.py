"""The state-space-duality scan of Mamba-2, https://arxiv.org/abs/2405.21060: one decay a head and step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_groups, expect_integers, expect_rank
from . import cpu, reference

__all__ = ["check", "ssd_scan"]


@overload
def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    return_final_state: Literal[False] = False,
    reverse: bool = False,
) -> Tensor: ...


@overload
def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    return_final_state: Literal[True],
    reverse: bool = False,
) -> tuple[Tensor, Tensor]: ...


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    return_final_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t (x) B_t; y_t = (h_t C_t + D x_t) silu(z_t), for every head.

    x, y, z: (B, L, H, P). delta: (B, L, H). A: (H,), negative. B, C: (B, L, G, N) where G divides H and group
    g serves the heads g H/G to (g+1) H/G - 1. D: (H,) or (H, P). delta_bias: (H,). dt = delta + delta_bias,
    through a softplus with `delta_softplus`. `initial_state` and the final state: (B, H, P, N), the latter in
    float32 (float64 where an input is float64). `seq_idx` (B, L), integers: the state is emptied wherever the
    id changes; `initial_state` enters the sequence that is met first. A negative id is padding: the token is
    skipped, its output and gradients are 0, no state moves on it, and what is met behind it begins empty.
    `lengths` (B,), integers in 0 to L: the
    tokens behind are right padding, which leaves the state as it is and whose outputs and gradients are 0;
    what it holds must be finite. `reverse` runs from the last token to the first. y has x's dtype.

    Raises ValueError for a shape or dtype that does not fit, and for tensors on several devices.
    """
    check(x, delta, A, B, C, D, delta_bias, initial_state, seq_idx, lengths, z)
    path = choose("ssd_scan", x, delta, A, B, C, D, z, delta_bias, initial_state)
    run: Callable[..., tuple[Tensor, Tensor | None]]
    if path == "triton":
        from . import gpu

        run = gpu.ssd_scan
    else:
        run = reference.ssd_scan if path == "reference" else cpu.ssd_scan
    y, state = run(
        x=x,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        initial_state=initial_state,
        seq_idx=seq_idx,
        lengths=lengths,
        return_final_state=return_final_state,
        reverse=reverse,
    )
    if not return_final_state:
        return y
    assert state is not None
    return y, state


def check(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
    z: Tensor | None = None,
) -> None:
    """Raises ValueError for the first argument that does not fit."""
    expect_floating(
        x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state
    )
    expect_rank("x", x, "(B, L, H, P)")
    expect_rank("B", B, "(B, L, G, N)")
    (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
    if states < 1:
        raise ValueError(f"B: shape {tuple(B.shape)}, expected (B, L, G, N) with N of at least 1")
    expect("delta", delta, "(B, L, H)", batch, length, heads)
    expect("A", A, "(H,)", heads)
    expect_groups("B", groups, heads, "heads")
    expect("B", B, "(B, L, G, N)", batch, length, groups, states)
    expect("C", C, "(B, L, G, N)", batch, length, groups, states)
    if D is not None and D.dim() == 2:
        expect("D", D, "(H, P)", heads, width)
    else:
        expect("D", D, "(H,)", heads)
    expect("z", z, "(B, L, H, P)", batch, length, heads, width)
    expect("delta_bias", delta_bias, "(H,)", heads)
    expect("initial_state", initial_state, "(B, H, P, N)", batch, heads, width, states)
    expect("seq_idx", seq_idx, "(B, L)", batch, length)
    expect("lengths", lengths, "(B,)", batch)
    expect_integers(x.device, seq_idx=seq_idx, lengths=lengths)
