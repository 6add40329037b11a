"""A Mamba-2 mixer that sees both ways: the sum of two SSD scans, each token's own term counted once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_integers, expect_rank
from ..ssd_scan import check
from . import cpu, reference

__all__ = ["bidirectional_ssd"]


def bidirectional_ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    A_b: Tensor | None = None,
    delta_b: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_branches: bool = False,
    quadratic_limit: int = 1024,
    branch_tokens: Tensor | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """y = scan_f + scan_b - own, where own_t = (C_t . B_t) dt_t x_t is what both scans hold of a token
    itself.

    Shapes as in `ssd_scan`: x, y (B, L, H, P), delta (B, L, H), A (H,), B and C (B, L, G, N), delta_bias
    (H,). A_b (H,) and delta_b (B, L, H) belong to the backward scan and default to A and delta; `delta_bias`
    and the softplus apply to both. With two deltas own is the mean of both own terms. `return_branches` gives
    (y, y_f, y_b) with y_f = 2 scan_f - own_f and y_b = 2 scan_b - own_b, whose mean is y; with
    `branch_tokens` (m,), signed integers, on those positions alone, (B, m, H, P), for a share of the cost. Up
    to `quadratic_limit` tokens the mixer is one masked matrix product, (C B') o decay; beyond, two chunked
    scans. `seq_idx` (B, L), integers: tokens see each other only where the id does not change between them;
    a negative id is padding, which no token sees and whose outputs and gradients are 0.
    `lengths` (B,), integers in 0 to L: the tokens behind are right padding, which no token sees and whose
    outputs and gradients are 0; what it holds must be finite. y has x's dtype.

    Raises ValueError for a shape or dtype that does not fit, and for tensors on several devices.
    """
    expect_floating(x=x, A_b=A_b, delta_b=delta_b)
    check(x, delta, A, B, C, None, delta_bias, None, seq_idx, lengths)
    expect("A_b", A_b, "(H,)", x.shape[2])
    expect("delta_b", delta_b, "(B, L, H)", *delta.shape)
    if branch_tokens is not None:
        expect_rank("branch_tokens", branch_tokens, "(m)")
    expect_integers(x.device, branch_tokens=branch_tokens)
    if branch_tokens is not None:
        if branch_tokens.dtype == torch.uint8:  # which torch takes for a mask
            raise ValueError("branch_tokens: dtype torch.uint8, expected a signed integer type")
        branch_tokens = branch_tokens.long()
    path = choose("bidirectional_ssd", x, delta, A, B, C, A_b, delta_b, delta_bias)
    shared: dict[str, Any] = dict(
        x=x,
        delta=delta,
        A=A,
        B=B,
        C=C,
        A_b=A_b,
        delta_b=delta_b,
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        return_branches=return_branches,
        branch_tokens=branch_tokens,
        seq_idx=seq_idx,
        lengths=lengths,
    )
    if path == "triton":
        from . import gpu

        return gpu.bidirectional_ssd(**shared, quadratic_limit=quadratic_limit)
    if path == "reference":
        return reference.bidirectional_ssd(**shared)
    return (cpu.by_matrix if x.shape[1] <= quadratic_limit else cpu.by_scans)(**shared)
