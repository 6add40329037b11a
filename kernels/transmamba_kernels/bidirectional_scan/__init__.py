"""Vim's two selective scans, https://arxiv.org/abs/2401.09417, algorithm 1, in one call."""

from __future__ import annotations

from torch import Tensor

from ..backend import choose
from ..selective_scan import check
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
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The mean of a forward scan and a backward scan (`*_b`, from the last token to the first), gated by z.

    Shapes as in `selective_scan`, the same for both directions. All tensors are in raster order, those of the
    backward direction too; so are the outputs. Returns (y_f + y_b) / 2 silu(z), (B, L, D); with
    `return_branches` also y_f silu(z) and y_b silu(z), whose mean the first then is.

    Raises ValueError for a shape that does not fit, and where the directions differ in shape.
    """
    check(u, delta, A, B, C, D, z, delta_bias)
    check(u_b, delta_b, A_b, B_b, C_b, D_b, None, delta_bias_b, suffix="_b")
    for name, ours, theirs in (("u_b", u, u_b), ("A_b", A, A_b), ("B_b", B, B_b)):
        if ours.shape != theirs.shape:
            expected = tuple(ours.shape)
            raise ValueError(f"{name}: shape {tuple(theirs.shape)}, expected that of {name[:-2]}, {expected}")
    path = choose("bidirectional_scan", u)
    run = reference.bidirectional_scan if path == "reference" else cpu.bidirectional_scan
    ahead = (u, delta, A, B, C, D, delta_bias)
    back = (u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b)
    return run(ahead, back, z, delta_softplus, return_branches)
