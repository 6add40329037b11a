"""One step of the selective scan in as few passes over the state as PyTorch can make."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype, without_autocast
from ..ssd_scan.decay import LOG2_E


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
    B, C = (matrix.to(dtype) if matrix.dim() == 3 else matrix.to(dtype).unsqueeze(1) for matrix in (B, C))
    by_group = (B.shape[1], u.shape[1] // B.shape[1])
    decay = torch.exp2(dt.unsqueeze(-1) * (A.to(dtype) * LOG2_E))
    new = torch.mul(state, decay).unflatten(1, by_group)
    new = torch.addcmul(new, (dt * x).unflatten(1, by_group).unsqueeze(-1), B.unsqueeze(2))  # (B, G, D/G, N)
    state.copy_(new.flatten(1, 2))
    with without_autocast(u.device):
        y = (new @ C.unsqueeze(-1)).flatten(1)
    if D is not None:
        y = torch.addcmul(y, x, D.to(dtype))
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype)
