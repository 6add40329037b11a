"""Experts in plain PyTorch: tokens sorted by expert, its grouped product where there is one, else a loop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype, without_autocast


def grouped_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: str, gated: bool
) -> Tensor:
    """Arguments as in `transmamba_kernels.grouped_experts`; (N, D)."""
    count, each = chosen.shape
    if chosen.numel() == 0 or x.shape[1] == 0:
        return x * 0 + (up.sum() + down.sum() + weights.sum()).to(x.dtype) * 0
    experts = chosen.flatten().long()
    order = experts.argsort(stable=True)
    counts = (experts[:, None] == torch.arange(len(up), device=x.device)).sum(0)
    with without_autocast(x.device):
        hidden = _products(x[order // each], up, counts)
        act = F.relu if activation == "relu" else F.silu
        if gated:
            gate, other = hidden.chunk(2, dim=-1)
            hidden = act(gate) * other
        else:
            hidden = act(hidden)
        made = _products(hidden, down, counts).to(compute_dtype(x, weights))
    said = made * weights.flatten()[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    return said[back].unflatten(0, (count, each)).sum(1).to(x.dtype)


def _products(rows: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """rows (S, K), sorted by expert, matrices (E, M, K), counts (E,) -> (S, M)"""
    sizes = [size * rows.dtype.itemsize for size in matrices.shape[1:]]
    if rows.dtype != torch.float64 and not any(size % 16 for size in sizes):
        return F.grouped_mm(rows, matrices.transpose(1, 2), offs=counts.cumsum(0).int())
    parts = rows.split(counts.tolist())
    return torch.cat([F.linear(part, matrix) for part, matrix in zip(parts, matrices, strict=True)])
