"""Our kernels of experts as one of transformers' implementations, for our layers and for stock models:
`model.set_experts_implementation("transmamba")`.

What they do not hold goes to transformers' own `grouped_mm`: experts with biases, gates of their own, other
activations than SiLU and ReLU, experts in parallel, and devices without Triton.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations import moe
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward
from transmamba_kernels import grouped_experts
from transmamba_kernels.backend import choose
from transmamba_kernels.grouped_experts import Activation

OURS = "transmamba"


def has_kernels(tokens: Tensor) -> bool:
    """Whether it is our kernels, or their reference, that such tokens go to; said in the kernels' log."""
    return choose("grouped_experts", tokens) != "cpu"


def experts_forward(
    experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """tokens (N, D), chosen (N, k), weights (N, k) -> (N, D), by the names that transformers gives them."""
    activation = _activation(experts)
    if activation is None or not has_kernels(hidden_states):
        return grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
    into = experts.gate_up_proj if experts.has_gate else experts.up_proj
    said = grouped_experts(
        hidden_states.to(into.dtype),  # as theirs: under autocast tokens may be wider
        top_k_index,
        top_k_weights,
        into,
        experts.down_proj,
        activation,
        gated=experts.has_gate,
    )
    return said.to(hidden_states.dtype)


def _activation(experts: Any) -> Activation | None:
    """None where the kernels do not hold these experts."""
    # transformers 5.17 does not say so of a model's experts
    parallel = getattr(experts, "_is_expert_parallel", dist.is_available() and dist.is_initialized())
    own_gate = experts.has_gate and type(experts)._apply_gate is not getattr(moe, "_default_apply_gate", None)
    whole = experts.is_concatenated and not experts.is_transposed
    more = experts.has_bias or getattr(experts, "has_post_expert_norm", False)
    if parallel or own_gate or more or not whole:
        return None
    act = experts.act_fn
    if act is F.silu or type(act) in (nn.SiLU, SiLUActivation):
        return "silu"
    return "relu" if act is F.relu or type(act) is nn.ReLU else None


ExpertsInterface.register(OURS, experts_forward)
