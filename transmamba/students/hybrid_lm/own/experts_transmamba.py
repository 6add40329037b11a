# SPDX-License-Identifier: Apache-2.0
"""Experts of which a router chooses some for each token; none is dropped here. Shapes: N tokens of D
channels, E experts of F neurons, k of them a token."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.moe import use_experts_implementation

from .scan_transmamba import wide


class HybridRouter(nn.Module):
    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (..., E) of tokens (..., D), in float32 or wider."""
        return F.linear(wide(x), wide(self.weight)).softmax(dim=-1)


class _Bank(nn.Module):
    """All experts' weights by the names that transformers' implementations of experts read; its own forward
    is `eager`."""

    up = ""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts, width, neurons = config.num_experts, config.hidden_size, config.intermediate_size
        rows = 2 * neurons if config.mlp == "swiglu" else neurons
        self.register_parameter(self.up, nn.Parameter(torch.empty(self.num_experts, rows, width)))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, neurons))
        self.act_fn = F.silu if config.mlp == "swiglu" else F.relu

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return self.one_by_one(tokens, chosen, weights)

    def one_by_one(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        made = torch.zeros_like(tokens)
        for e in range(self.num_experts):
            rows, choice = torch.where(chosen == e)
            hidden = F.linear(tokens[rows], getattr(self, self.up)[e])
            if self.up == "gate_up_proj":
                gate, up = hidden.chunk(2, dim=-1)
                hidden = self.act_fn(gate) * up
            else:
                hidden = self.act_fn(hidden)
            said = F.linear(hidden, self.down_proj[e]) * weights[rows, choice, None]
            made = made.index_add(0, rows, said.to(made.dtype))
        return made


@use_experts_implementation(has_gate=True)
class GatedBank(_Bank):
    up = "gate_up_proj"


@use_experts_implementation(has_gate=False)
class PlainBank(_Bank):
    up = "up_proj"


class HybridExperts(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.each, self.normalised = config.num_experts_per_tok, config.norm_topk_prob
        self.scale = config.router_scale
        self.router = HybridRouter(config.hidden_size, config.num_experts)
        self.experts = (GatedBank if config.mlp == "swiglu" else PlainBank)(config)

    @property
    def grouped(self) -> bool:
        """Whether there is a grouped product: not in float64, and of rows of whole 16 bytes alone."""
        down = self.experts.down_proj
        sizes = [size * down.element_size() for size in down.shape[1:]]
        return down.dtype != torch.float64 and not any(size % 16 for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """What the chosen experts add to the stream x (B, T, D)."""
        weights, chosen = self.router(x).topk(self.each, dim=-1)
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        tokens, weights = x.flatten(0, 1), (weights * self.scale).flatten(0, 1)
        run = self.experts if self.grouped else self.experts.one_by_one
        return run(tokens, chosen.flatten(0, 1), weights).view_as(x).to(x.dtype)


class HybridSwitch(nn.Module):
    """One projection of E, by the probability of the likeliest."""

    def __init__(self, width: int, outputs: int, count: int) -> None:
        super().__init__()
        self.router = HybridRouter(width, count)
        self.weight = nn.Parameter(torch.empty(count, outputs, width))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).max(dim=-1)
        made = x.new_zeros(*x.shape[:-1], self.weight.shape[1])
        for e in range(len(self.weight)):
            rows = torch.where(chosen == e)
            made = made.index_put(rows, F.linear(x[rows], self.weight[e]))
        return made * weights[..., None].to(made.dtype)
