"""The bidirectional mixer, by its definition: two scans less the token's own term."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import compute_dtype
from ..packing import real_tokens, zero_padding
from ..ssd_scan import reference
from ..ssd_scan.reference import step_size

Scan = Callable[..., tuple[Tensor, Tensor | None]]


def bidirectional_ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    A_b: Tensor | None,
    delta_b: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_branches: bool,
    branch_tokens: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    scan: Scan = reference.ssd_scan,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.bidirectional_ssd`: y (B, L, H, P), or (y, y_f, y_b).

    All in the scan's own arithmetic until the end, whichever implementation `scan` is.
    """
    dtype = compute_dtype(x, delta, A, B, C, A_b, delta_b, delta_bias)
    wide = x.to(dtype)
    real = real_tokens(x.shape[1], seq_idx, lengths)
    dt_f = step_size(delta, delta_bias, delta_softplus, dtype, real)
    dt_b = dt_f if delta_b is None else step_size(delta_b, delta_bias, delta_softplus, dtype, real)

    def one_way(dt: Tensor, A: Tensor, reverse: bool) -> Tensor:
        y, _ = scan(wide, dt, A, B, C, None, None, None, False, None, seq_idx, lengths, False, reverse)
        return y

    y_f, y_b = one_way(dt_f, A, False), one_way(dt_b, A if A_b is None else A_b, True)
    match = (C.to(dtype) * B.to(dtype)).sum(-1).repeat_interleave(x.shape[2] // B.shape[2], dim=2)
    own_f, own_b = ((match * dt).unsqueeze(-1) * wide for dt in (dt_f, dt_b))
    if not return_branches:
        return zero_padding(y_f + y_b - (own_f + own_b) * 0.5, real).to(x.dtype)
    y_f, y_b = (zero_padding(2 * y - own, real).to(x.dtype) for y, own in ((y_f, own_f), (y_b, own_b)))
    return with_tokens((y_f + y_b) * 0.5, y_f, y_b, branch_tokens)


def with_tokens(y: Tensor, y_f: Tensor, y_b: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The branches on the chosen tokens alone."""
    return (y, y_f, y_b) if tokens is None else (y, *at_tokens(tokens, y_f, y_b))


def at_tokens(tokens: Tensor, y_f: Tensor, y_b: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, ...) at `tokens`."""
    if tokens.numel() and y_f.shape[1]:
        # negative positions count from the end; index_select, whose backward need not sort
        tokens = torch.where(tokens < 0, tokens + y_f.shape[1], tokens)
    return y_f.index_select(1, tokens), y_b.index_select(1, tokens)
