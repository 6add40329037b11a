"""The selective scan as it is written in the paper: one step after the other, differentiated by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype, without_autocast
from ..packing import real_tokens, zero_padding


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    return_final_state: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.selective_scan`. y (B, L, D), final state (B, D, N) or None."""
    dtype = compute_dtype(u, delta, A, B, C, D, z, delta_bias, initial_state)
    with without_autocast(u.device):
        dt = delta.to(dtype)
        if delta_bias is not None:
            dt = dt + delta_bias.to(dtype)
        if delta_softplus:
            dt = F.softplus(dt)
        real = real_tokens(u.shape[1], seq_idx, None)
        dt = zero_padding(dt, real)
        batch, length, channels = u.shape
        x, B, C = u.to(dtype), _per_channel(B.to(dtype), channels), _per_channel(C.to(dtype), channels)
        state = x.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(dtype)
        outputs: list[Tensor] = [x.new_empty(0)] * length
        order = range(length - 1, -1, -1) if reverse else range(length)
        before: int | None = None
        for t in order:
            decay = torch.exp(dt[:, t, :, None] * A.to(dtype))
            if seq_idx is not None and before is not None:
                goes_on = (seq_idx[:, t] == seq_idx[:, before]) | (seq_idx[:, t] < 0)
                decay = decay * goes_on[:, None, None]
            state = decay * state + (dt[:, t] * x[:, t])[..., None] * B[:, t]
            outputs[t] = (state * C[:, t]).sum(-1)
            before = t
        y = torch.stack(outputs, dim=1) if length else x
        if D is not None:
            y = y + x * D.to(dtype)
        if z is not None:
            y = y * F.silu(z.to(dtype))
        y = zero_padding(y, real)
    return y.to(u.dtype), state if return_final_state else None


def _per_channel(matrix: Tensor, channels: int) -> Tensor:
    """B or C as (B, L, D, N), or (B, L, 1, N) where all channels share one."""
    if matrix.dim() == 3:
        return matrix.unsqueeze(2)
    return matrix.repeat_interleave(channels // matrix.shape[2], dim=2)
