"""Token after token, expert after expert."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import compute_dtype, without_autocast


def grouped_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: str, gated: bool
) -> Tensor:
    """Arguments as in `transmamba_kernels.grouped_experts`; (N, D)."""
    dtype = compute_dtype(x, weights)
    wide = [tensor.to(dtype) for tensor in (x, weights, up, down)]
    with without_autocast(x.device):
        made = [
            _token(token, experts, shares, wide[2], wide[3], activation, gated)
            for token, experts, shares in zip(wide[0], chosen.tolist(), wide[1], strict=True)
        ]
    return torch.stack(made).to(x.dtype) if made else x * 0


def _token(
    token: Tensor, experts: list[int], shares: Tensor, up: Tensor, down: Tensor, activation: str, gated: bool
) -> Tensor:
    made = torch.zeros_like(token)
    for expert, share in zip(experts, shares, strict=True):
        into = up[expert] @ token
        first = into[: down.shape[2]]
        hidden = first.clamp_min(0) if activation == "relu" else first * first.sigmoid()
        if gated:
            hidden = hidden * into[down.shape[2] :]
        made = made + share * (down[expert] @ hidden)
    return made
