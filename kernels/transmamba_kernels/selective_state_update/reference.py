"""One step of the selective scan, as the scan's reference takes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Arguments as in `transmamba_kernels.selective_state_update`; y (B, D)."""
    dtype = compute_dtype(state, u, delta, A, B, C, D, z, delta_bias)
    x, dt = u.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)
    if delta_softplus:
        dt = F.softplus(dt)
    B, C = (_per_channel(matrix.to(dtype), u.shape[1]) for matrix in (B, C))
    new = torch.exp(dt.unsqueeze(-1) * A.to(dtype)) * state.to(dtype) + (dt * x).unsqueeze(-1) * B
    state.copy_(new)
    y = (new * C).sum(-1)
    if D is not None:
        y = y + x * D.to(dtype)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype)


def _per_channel(matrix: Tensor, channels: int) -> Tensor:
    """B or C as (B, D, N), or (B, 1, N) where all channels share one."""
    if matrix.dim() == 2:
        return matrix.unsqueeze(1)
    return matrix.repeat_interleave(channels // matrix.shape[1], dim=1)
