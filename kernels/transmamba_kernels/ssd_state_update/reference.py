"""One step of the SSD scan, as the scan's reference takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import compute_dtype
from ..ssd_scan.reference import finish, step_size


def ssd_state_update(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Arguments as in `transmamba_kernels.ssd_state_update`; y (B, H, P)."""
    dtype = compute_dtype(state, x, delta, A, B, C, D, z, delta_bias)
    wide, heads = x.to(dtype), x.shape[1]
    dt = step_size(delta, delta_bias, delta_softplus, dtype)
    B, C = (matrix.to(dtype).repeat_interleave(heads // matrix.shape[1], dim=1) for matrix in (B, C))
    decay = torch.exp(dt * A.to(dtype))[..., None, None]
    new = decay * state.to(dtype) + (dt.unsqueeze(-1) * wide).unsqueeze(-1) * B.unsqueeze(2)
    state.copy_(new)
    y = (new * C.unsqueeze(2)).sum(-1)
    return finish(y, wide, D, z, None).to(x.dtype)
