"""The selective scan of Mamba (S6), https://arxiv.org/abs/2312.00752, equations 2 and algorithm 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_groups, expect_integers, expect_rank
from . import cpu, reference

__all__ = ["check", "selective_scan"]


@overload
def selective_scan(
    u: Tensor,
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
    return_final_state: Literal[False] = False,
    reverse: bool = False,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
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
    *,
    return_final_state: Literal[True],
    reverse: bool = False,
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
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
    return_final_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t; y_t = (C_t . h_t + D u_t) silu(z_t), for every channel.

    u, delta, z, y: (B, L, D). A: (D, N), negative. B, C: (B, L, N), or (B, L, G, N) where G divides D and
    group g serves the channels g D/G to (g+1) D/G - 1. D, delta_bias: (D,). dt = delta + delta_bias, through
    a softplus with `delta_softplus`. `initial_state` and the final state: (B, D, N), the latter in float32
    (float64 where an input is float64). `seq_idx` (B, L), integers: the state is emptied wherever the id
    changes, so that packed sequences do not mix; `initial_state` enters the first of them. A negative id is
    padding: the token is skipped, its output and gradients are 0, no state moves on it, and what is met
    behind it begins empty; what it holds must be finite. `reverse` runs
    from the last token to the first; the final state is then the one at token 0. y has u's dtype; all tensors
    have gradients.

    Raises ValueError for a shape or dtype that does not fit and for tensors on several devices.
    """
    expect_floating(
        u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state
    )
    check(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    expect_integers(u.device, seq_idx=seq_idx)
    path = choose("selective_scan", u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx)
    run: Callable[..., tuple[Tensor, Tensor | None]]
    if path == "triton":
        from . import gpu

        run = gpu.selective_scan
    else:
        run = reference.selective_scan if path == "reference" else cpu.selective_scan
    y, state = run(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        initial_state,
        seq_idx,
        return_final_state,
        reverse,
    )
    if not return_final_state:
        return y
    assert state is not None
    return y, state


def check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    suffix: str = "",
) -> None:
    """Raises ValueError for the first shape that does not fit; `suffix` goes behind the names in messages."""
    expect_rank("u" + suffix, u, "(B, L, D)")
    expect_rank("A" + suffix, A, "(D, N)")
    batch, length, channels = u.shape
    states = A.shape[1]
    expect("delta" + suffix, delta, "(B, L, D)", batch, length, channels)
    expect("A" + suffix, A, "(D, N)", channels, states)
    for name, matrix in (("B" + suffix, B), ("C" + suffix, C)):
        if matrix.dim() == 4:
            expect_groups(name, matrix.shape[2], channels, "channels")
            expect(name, matrix, "(B, L, G, N)", batch, length, matrix.shape[2], states)
        else:
            expect(name, matrix, "(B, L, N)", batch, length, states)
    if (B.shape[2] if B.dim() == 4 else 1) != (C.shape[2] if C.dim() == 4 else 1):
        raise ValueError(
            f"C{suffix}: shape {tuple(C.shape)}, expected as many groups as B{suffix}, {tuple(B.shape)}"
        )
    expect("D" + suffix, D, "(D,)", channels)
    expect("z" + suffix, z, "(B, L, D)", batch, length, channels)
    expect("delta_bias" + suffix, delta_bias, "(D,)", channels)
    expect("initial_state" + suffix, initial_state, "(B, D, N)", batch, channels, states)
    expect("seq_idx" + suffix, seq_idx, "(B, L)", batch, length)
