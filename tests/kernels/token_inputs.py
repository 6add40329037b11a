"""One token of a Mamba-2 mixer, and the formula in float64, written out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# heads, channels of one, states, groups of B and C, channels that are normed together
SHAPES = {
    "a head a group": (4, 16, 16, 4, 16),
    "odd sizes": (3, 6, 5, 3, 6),
    "normed together": (4, 8, 16, 4, 32),
    "B and C shared": (6, 8, 16, 2, 24),
    "B and C shared, a head normed": (4, 8, 5, 2, 8),
    "one group": (3, 5, 7, 1, 15),
    "heads of a LLaVA of 7B": (3, 128, 128, 3, 128),
    "heads of Mamba-2's": (4, 64, 128, 1, 256),
}


def token(
    shape: str, batch: int = 3, taps: int = 4, older: int = 1, bias: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Arguments of `mamba2_step` in float32; the state of the convolution keeps `older` tokens more than it
    needs."""
    heads, width, states, groups, group = SHAPES[shape]
    inner, channels = heads * width, heads * width + 2 * groups * states
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return {
        "projected": normal(batch, inner + channels + heads),
        "conv_state": normal(batch, channels, taps - 1 + older),
        "state": normal(batch, heads, width, states),
        "conv_weight": normal(channels, taps),
        "conv_bias": normal(channels) if bias else None,
        "dt_bias": 2 * normal(heads),
        "A_log": normal(heads),
        "D": normal(heads),
        "norm_weight": normal(inner),
        "eps": 1e-5,
        "group_size": group,
    }


def formula(
    projected: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    eps: float,
    group_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, H P) and the two states, head by head, row by row; of float64."""
    (batch, heads, width, states), channels = state.shape, len(conv_weight)
    inner, taps = heads * width, conv_weight.shape[1]
    per_group = heads // ((channels - inner) // (2 * states))
    tokens = projected[:, inner : inner + channels]
    window = torch.cat([conv_state, tokens[..., None]], dim=-1)
    mixed = (window[..., -taps:] * conv_weight).sum(-1)
    mixed = F.silu(mixed if conv_bias is None else mixed + conv_bias)
    y, moved = torch.zeros(batch, inner).double(), torch.zeros_like(state)
    for b in range(batch):
        for h in range(heads):
            at, group = slice(h * width, (h + 1) * width), h // per_group
            first = inner + group * states
            second = first + (channels - inner) // 2
            dt = torch.log1p(torch.exp(projected[b, inner + channels + h] + dt_bias[h]))
            decay = torch.exp(-dt * torch.exp(A_log[h]))
            x = mixed[b, at]
            moved[b, h] = decay * state[b, h] + dt * torch.outer(x, mixed[b, first : first + states])
            y[b, at] = moved[b, h] @ mixed[b, second : second + states] + D[h] * x
        y[b] *= projected[b, :inner] * torch.sigmoid(projected[b, :inner])
        for first in range(0, inner, group_size):
            part = y[b, first : first + group_size]
            y[b, first : first + group_size] = part / (part.square().mean() + eps).sqrt()
    return y * norm_weight, window[..., 1:], moved


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    return {n: v.double() if isinstance(v, Tensor) else v for n, v in arguments.items()}
