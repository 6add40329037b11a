"""The SSD scan, one step after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype, without_autocast
from ..packing import real_tokens, segments, zero_padding


def step_size(
    delta: Tensor, bias: Tensor | None, softplus: bool, dtype: torch.dtype, real: Tensor | None = None
) -> Tensor:
    """dt, (B, L, H); 0 in the padding, where it then leaves every state as it is."""
    dt = delta.to(dtype)
    if bias is not None:
        dt = dt + bias.to(dtype)
    return zero_padding(F.softplus(dt) if softplus else dt, real)


def finish(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None, real: Tensor | None) -> Tensor:
    """(y + D x) silu(z), without padding, in y's dtype. y, x, z: (B, L, H, P), D: (H,) or (H, P)."""
    if D is not None:
        D = D.to(y.dtype)
        y = y + x * (D if D.dim() == 2 else D.unsqueeze(-1))
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    return zero_padding(y, real)


def ssd_scan(
    x: Tensor,
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
    lengths: Tensor | None,
    return_final_state: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.ssd_scan`. y (B, L, H, P), final state (B, H, P, N) or None."""
    dtype = compute_dtype(x, delta, A, B, C, D, z, delta_bias, initial_state)
    with without_autocast(x.device):
        real = real_tokens(x.shape[1], seq_idx, lengths)
        dt = step_size(delta, delta_bias, delta_softplus, dtype, real)
        (batch, length, heads, width), (groups, states) = x.shape, B.shape[2:]
        wide, sequence = x.to(dtype), segments(seq_idx, lengths, reverse)
        B = B.to(dtype).repeat_interleave(heads // groups, dim=2)
        C = C.to(dtype).repeat_interleave(heads // groups, dim=2)
        if initial_state is None:
            state = wide.new_zeros(batch, heads, width, states)
        else:
            state = initial_state.to(dtype)
        outputs: list[Tensor] = [wide.new_empty(0)] * length
        before: int | None = None
        for t in range(length - 1, -1, -1) if reverse else range(length):
            decay = torch.exp(dt[:, t] * A.to(dtype))
            if sequence is not None and before is not None:
                decay = decay * (sequence[:, t] == sequence[:, before]).unsqueeze(-1)
            state = decay[..., None, None] * state
            state = state + (dt[:, t, :, None] * wide[:, t])[..., None] * B[:, t, :, None, :]
            outputs[t] = (state * C[:, t, :, None, :]).sum(-1)
            before = t
        y = torch.stack(outputs, dim=1) if length else wide
        y = finish(y, wide, D, z, real)
    return y.to(x.dtype), state if return_final_state else None
