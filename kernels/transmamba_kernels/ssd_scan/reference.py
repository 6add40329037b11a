"""The SSD scan, one step after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype, without_autocast


def step_size(delta: Tensor, bias: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    """dt, (B, L, H)."""
    dt = delta.to(dtype)
    if bias is not None:
        dt = dt + bias.to(dtype)
    return F.softplus(dt) if softplus else dt


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.ssd_scan`. y (B, L, H, P), final state (B, H, P, N)."""
    dtype = compute_dtype(x, delta, A, B, C, D, delta_bias, initial_state)
    with without_autocast(x.device):
        dt = step_size(delta, delta_bias, delta_softplus, dtype)
        (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
        wide = x.to(dtype)
        B = B.to(dtype).repeat_interleave(heads // groups, dim=2)
        C = C.to(dtype).repeat_interleave(heads // groups, dim=2)
        if initial_state is None:
            state = wide.new_zeros(batch, heads, width, states)
        else:
            state = initial_state.to(dtype)
        outputs: list[Tensor] = [wide.new_empty(0)] * length
        for t in range(length - 1, -1, -1) if reverse else range(length):
            decay = torch.exp(dt[:, t] * A.to(dtype))[..., None, None]
            state = decay * state + (dt[:, t, :, None] * wide[:, t])[..., None] * B[:, t, :, None, :]
            outputs[t] = (state * C[:, t, :, None, :]).sum(-1)
        y = torch.stack(outputs, dim=1) if length else wide
        if D is not None:
            y = y + wide * D.to(dtype)[:, None]
    return y.to(x.dtype), state
