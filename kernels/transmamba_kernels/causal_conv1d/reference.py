"""The causal convolution, token by token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    reverse: bool,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.causal_conv1d`; y (B, L, D), final state (B, D, K-1) or None."""
    dtype = compute_dtype(x, weight, bias, initial_state)
    (batch, length, channels), taps = x.shape, weight.shape[1]
    start = x.new_zeros(batch, channels, taps - 1) if initial_state is None else initial_state
    columns = weight.to(dtype)
    rows, states = [], []
    for b in range(batch):
        real = length if lengths is None else min(int(lengths[b]), length)
        window = start[b].to(dtype)  # (D, K-1), oldest first
        outputs = [x.new_zeros(channels, dtype=dtype)] * length
        before: int | None = None
        for t in range(real - 1, -1, -1) if reverse else range(real):
            previous, before = before, t
            if seq_idx is not None and seq_idx[b, t] < 0:
                continue
            if seq_idx is not None and previous is not None and seq_idx[b, t] != seq_idx[b, previous]:
                window = torch.zeros_like(window)
            window = torch.cat([window, x[b, t, :, None].to(dtype)], dim=1)
            y = (window * columns).sum(1)
            y = y if bias is None else y + bias.to(dtype)
            outputs[t] = F.silu(y) if activation == "silu" else y
            window = window[:, 1:]
        rows.append(torch.stack(outputs) if outputs else x[b].to(dtype))
        states.append(window)
    y = torch.stack(rows).to(x.dtype) if rows else x * 1
    if not return_final_state:
        return y, None
    return y, torch.stack(states).to(x.dtype) if states else start.to(x.dtype)


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Arguments as in `transmamba_kernels.causal_conv1d_update`; y (B, D)."""
    dtype = compute_dtype(x, weight, bias, state)
    window = torch.cat([state.to(dtype), x.unsqueeze(-1).to(dtype)], dim=-1)
    y = (window[..., -weight.shape[1] :] * weight.to(dtype)).sum(-1)
    y = y if bias is None else y + bias.to(dtype)
    state.copy_(window[..., 1:])
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)
