"""The bidirectional mixer, by its definition: two scans less the token's own term."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..backend import compute_dtype
from ..ssd_scan import reference
from ..ssd_scan.reference import step_size

Scan = Callable[..., tuple[Tensor, Tensor]]


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
    branch_tokens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.bidirectional_ssd`: y (B, L, H, P), or (y, y_f, y_b)."""
    out = with_scan(
        reference.ssd_scan, x, delta, A, B, C, A_b, delta_b, delta_bias, delta_softplus, return_branches
    )
    return with_tokens(*out, branch_tokens) if isinstance(out, tuple) else out


def with_tokens(y: Tensor, y_f: Tensor, y_b: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The branches on the chosen tokens alone."""
    return (y, y_f, y_b) if tokens is None else (y, y_f[:, tokens], y_b[:, tokens])


def with_scan(
    scan: Scan,
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
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """The definition over any implementation of the scan, all in the scan's own arithmetic until the end."""
    dtype = compute_dtype(x, delta, A, B, C, A_b, delta_b, delta_bias)
    wide = x.to(dtype)
    dt_f = step_size(delta, delta_bias, delta_softplus, dtype)
    dt_b = dt_f if delta_b is None else step_size(delta_b, delta_bias, delta_softplus, dtype)
    y_f, _ = scan(wide, dt_f, A, B, C, None, None, False, None, False)
    y_b, _ = scan(wide, dt_b, A if A_b is None else A_b, B, C, None, None, False, None, True)
    match = (C.to(dtype) * B.to(dtype)).sum(-1).repeat_interleave(x.shape[2] // B.shape[2], dim=2)
    own_f, own_b = ((match * dt).unsqueeze(-1) * wide for dt in (dt_f, dt_b))
    if not return_branches:
        return (y_f + y_b - (own_f + own_b) * 0.5).to(x.dtype)
    y_f, y_b = (2 * y_f - own_f).to(x.dtype), (2 * y_b - own_b).to(x.dtype)
    return (y_f + y_b) * 0.5, y_f, y_b
