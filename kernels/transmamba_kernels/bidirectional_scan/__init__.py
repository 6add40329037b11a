"""Vim's two selective scans, https://arxiv.org/abs/2401.09417, algorithm 1, in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..backend import choose
from ..selective_scan import check
from ..shapes import expect, expect_floating, expect_integers
from . import cpu, reference

__all__ = ["bidirectional_scan"]


def bidirectional_scan(
    u: Tensor,
    u_b: Tensor,
    delta: Tensor,
    delta_b: Tensor,
    A: Tensor,
    A_b: Tensor,
    B: Tensor,
    B_b: Tensor,
    C: Tensor,
    C_b: Tensor,
    D: Tensor | None = None,
    D_b: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_bias_b: Tensor | None = None,
    delta_softplus: bool = False,
    return_branches: bool = False,
    lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The mean of a forward scan and a backward scan (`*_b`, from the last token to the first), gated by z.

    Shapes as in `selective_scan`, the same for both directions. All tensors are in raster order, those of the
    backward direction too; so are the outputs. Returns (y_f + y_b) / 2 silu(z), (B, L, D); with
    `return_branches` also y_f silu(z) and y_b silu(z), whose mean the first then is. `lengths` (B,), integers
    in 0 to L: the tokens behind are right padding, which leaves both states as they are and whose outputs and
    gradients are 0; what it holds must be finite.

    Raises ValueError for a shape or dtype that does not fit, where the directions differ in shape, and for
    tensors on several devices.
    """
    expect_floating(
        u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias,
        u_b=u_b, delta_b=delta_b, A_b=A_b, B_b=B_b, C_b=C_b, D_b=D_b, delta_bias_b=delta_bias_b,
    )  # fmt: skip
    check(u, delta, A, B, C, D, z, delta_bias)
    check(u_b, delta_b, A_b, B_b, C_b, D_b, None, delta_bias_b, suffix="_b")
    for name, ours, theirs in (("u_b", u, u_b), ("A_b", A, A_b), ("B_b", B, B_b)):
        if ours.shape != theirs.shape:
            expected = tuple(ours.shape)
            raise ValueError(f"{name}: shape {tuple(theirs.shape)}, expected that of {name[:-2]}, {expected}")
    if u.dtype != u_b.dtype:
        raise ValueError(f"u_b: dtype {u_b.dtype}, expected that of u, {u.dtype}, which the output has")
    expect("lengths", lengths, "(B,)", len(u))
    expect_integers(u.device, lengths=lengths)
    ahead = (u, delta, A, B, C, D, delta_bias)
    back = (u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b)
    path = choose("bidirectional_scan", *ahead, *back, z)
    run: Callable[..., Any]
    if path == "triton":
        from . import gpu

        run = gpu.bidirectional_scan
    else:
        run = reference.bidirectional_scan if path == "reference" else cpu.bidirectional_scan
    return run(
        ahead=ahead,
        back=back,
        z=z,
        delta_softplus=delta_softplus,
        return_branches=return_branches,
        lengths=lengths,
    )
