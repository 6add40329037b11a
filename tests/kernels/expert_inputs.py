"""Inputs for tests of grouped experts, and what they must give: every expert for every token, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]


def arguments(
    count: int,
    width: int = 72,
    neurons: int = 136,
    experts: int = 5,
    each: int = 1,
    activation: str = "relu",
    gated: bool = False,
    dtype: torch.dtype = torch.float32,
    crowd: int | None = None,
) -> Arguments:
    """Every seventh token is dropped, and nobody chooses the last expert; crowd: the one that all choose."""
    generator = torch.Generator().manual_seed(count + width + each)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    scores = torch.rand(count, experts, generator=generator)
    scores[:, -1] = -1
    if crowd is not None:
        scores[:, crowd] = 2
    weights = torch.rand(count, each, generator=generator)
    weights[::7] = 0
    return {
        "x": draw(count, width).to(dtype),
        "chosen": scores.topk(each, dim=1).indices,
        "weights": weights,
        "up": (draw(experts, neurons * (1 + gated), width) / width**0.5).to(dtype),
        "down": (draw(experts, width, neurons) / neurons**0.5).to(dtype),
        "activation": activation,
        "gated": gated,
    }


def truth(
    x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: str, gated: bool
) -> Tensor:
    act = torch.nn.functional.silu if activation == "silu" else torch.nn.functional.relu
    made = torch.zeros_like(x)
    for e in range(len(up)):
        hidden = x @ up[e].T
        neurons = down.shape[2]
        hidden = act(hidden[:, :neurons]) * hidden[:, neurons:] if gated else act(hidden)
        made = made + (hidden @ down[e].T) * (weights * (chosen == e)).sum(1, keepdim=True)
    return made
