"""One step of the SSD scan in as few passes over the state as PyTorch can make."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import compute_dtype, without_autocast
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
    wide, dt = x.to(dtype), step_size(delta, delta_bias, delta_softplus, dtype)
    by_group = (B.shape[1], x.shape[1] // B.shape[1])
    kept = state * torch.exp(dt * A.to(dtype))[..., None, None]
    added = (wide * dt.unsqueeze(-1)).unflatten(1, by_group).unsqueeze(-1)
    new = torch.addcmul(kept.unflatten(1, by_group), added, B.to(dtype)[:, :, None, None])
    state.copy_(new.flatten(1, 2))
    with without_autocast(x.device):
        y = (new @ C.to(dtype)[:, :, None, :, None]).squeeze(-1).flatten(1, 2)  # of (B, G, H/G, P)
    return finish(y, wide, D, z, None).to(x.dtype)
