"""What stands behind a hybrid's mixers: an MLP, experts in its place, or nothing. Shapes: B rows, L tokens,
D channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.experts import Experts, ExpertsShape, SwitchLinear, begin_
from .architectures import architecture_of, expert_layers
from .norms import GatedSilu


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, width: int, neurons: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, neurons, bias=bias)
        self.up_proj = nn.Linear(width, neurons, bias=bias)
        self.down_proj = nn.Linear(neurons, width, bias=bias)
        self.gate = GatedSilu()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gate(self.gate_proj(x), self.up_proj(x)))


class FusedSwiGLU(nn.Module):
    """The same with gate and up in one matrix, the gate first."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.input_linear = nn.Linear(width, 2 * neurons, bias=False)
        self.output_linear = nn.Linear(neurons, width, bias=False)
        self.gate = GatedSilu()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.input_linear(x).chunk(2, dim=-1)
        return self.output_linear(self.gate(gate, up))


class ReluMLP(nn.Module):
    """down(relu(up(x))), as one of the experts of MoE-Mamba: it begins as they do."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, neurons, bias=False)
        self.down_proj = nn.Linear(neurons, width, bias=False)

    def reset_(self) -> None:
        for projection in (self.up_proj, self.down_proj):
            begin_(projection.weight, projection.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x)))


def experts_shape(config: Any) -> ExpertsShape:
    """Of a configuration that has experts."""
    architecture = architecture_of(config)
    if architecture.fused:  # transformers', which brings the chosen experts' weights to a sum of 1
        normalised, scale, gated = True, 1.0, True
        count = config.num_local_experts
    else:
        normalised, scale, gated = config.norm_topk_prob, config.router_scale, config.mlp == "swiglu"
        count = config.num_experts
    return ExpertsShape(
        width=config.hidden_size,
        neurons=config.intermediate_size,
        count=count,
        each=config.num_experts_per_tok,
        normalised=normalised,
        scale=scale,
        gated=gated,
        act="silu" if gated else "relu",
    )


def behind(config: Any, layer: int) -> tuple[str, nn.Module] | None:
    """What a layer has behind its mixer, and what the class calls it; None for nothing."""
    architecture, width = architecture_of(config), config.hidden_size
    if layer in expert_layers(config):
        assert architecture.experts is not None, "checked with the shape"
        return architecture.experts, Experts(experts_shape(config))
    if architecture.fused:
        return architecture.mlp, FusedSwiGLU(width, config.shared_intermediate_size)
    kind = getattr(config, "mlp", "swiglu")
    if kind == "none":
        return None
    if kind == "relu":
        return architecture.mlp, ReluMLP(width, config.intermediate_size)
    return architecture.mlp, SwiGLU(width, config.intermediate_size, config.mlp_bias)


@torch.no_grad()
def begin_experts(student: nn.Module, capacity: float | None, router_std: float | None) -> None:
    """What of a student's experts is no matter of its configuration.

    router_std: of the numbers that routers begin with; None leaves them as they are
    """
    for module in student.modules():
        if isinstance(module, Experts | SwitchLinear):
            module.capacity = capacity
            if router_std is not None:
                nn.init.normal_(module.router.weight, std=router_std)
