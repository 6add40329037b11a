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
) -> Tensor:
    """Arguments as in `transmamba_kernels.causal_conv1d`; y (B, L, D)."""
    dtype = compute_dtype(x, weight, bias, initial_state)
    (batch, length, channels), taps = x.shape, weight.shape[1]
    tokens = x.flip(1).to(dtype) if reverse else x.to(dtype)
    past = x.new_zeros(batch, taps - 1, channels) if initial_state is None else initial_state.transpose(1, 2)
    padded = torch.cat([past.to(dtype), tokens], dim=1)
    outputs = []
    for t in range(length):
        y = (padded[:, t : t + taps] * weight.T.to(dtype)).sum(1)
        y = y if bias is None else y + bias.to(dtype)
        outputs.append(F.silu(y) if activation == "silu" else y)
    y = torch.stack(outputs, dim=1) if outputs else tokens
    return (y.flip(1) if reverse else y).to(x.dtype)
