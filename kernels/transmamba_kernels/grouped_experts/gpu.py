"""Experts in Triton: three small launches that sort, and two products; backward four products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch_ops import Operator, Outputs, differentiable, fitted, nothing
from ..triton_common import on_device_of
from . import cpu
from .launch import Problem, Routing


def grouped_experts(
    x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: str, gated: bool
) -> Tensor:
    """Arguments as in `transmamba_kernels.grouped_experts`; (N, D)."""
    if chosen.numel() == 0 or down.numel() == 0:
        return cpu.grouped_experts(x, chosen, weights, up, down, activation, gated)
    keep = differentiable(x, weights, up, down)
    matrices = up.requires_grad or down.requires_grad
    return EXPERTS(x, chosen, weights, up, down, activation, gated, keep, x.requires_grad, matrices)[0]


def _problem(
    x: Tensor, chosen: Tensor, weights: Tensor, up: Tensor, down: Tensor, activation: str, gated: bool
) -> Problem:
    x, chosen, weights, up, down = (tensor.contiguous() for tensor in (x, chosen, weights, up, down))
    return Problem(x, chosen, weights, up, down, activation, gated)


def _forward(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str,
    gated: bool,
    keep: bool,
    of_tokens: bool,
    of_matrices: bool,
) -> Outputs:
    problem = _problem(x, chosen, weights, up, down, activation, gated)
    with on_device_of(x):
        routing = problem.route()
        y, hidden, before = problem.forward(routing, keep)
    if not keep:
        hidden = before = nothing(x)
    return y, routing.order, routing.bounds, routing.table, hidden, before


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    activation, gated, _, of_tokens, of_matrices = flags
    x, chosen, weights, up, down = tensors
    problem = _problem(x, chosen, weights, up, down, activation, gated)
    order, bounds, table, hidden, before = saved
    with on_device_of(problem.x):
        dx, dweights, dup, ddown = problem.gradients(
            grads[0].contiguous(), Routing(order, bounds, table), hidden, before, of_tokens, of_matrices
        )
    return fitted((dx, None, dweights, dup, ddown), tensors, problem.x)


def _fake(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    activation: str,
    gated: bool,
    keep: bool,
    of_tokens: bool,
    of_matrices: bool,
) -> Outputs:
    problem = Problem(x, chosen, weights, up, down, activation, gated)
    order, bounds, table, hidden, before = problem.shapes()
    integers = [x.new_empty(shape, dtype=torch.int32) for shape in (order, bounds, table)]
    kept = [x.new_empty(shape if keep else (0,)) for shape in (hidden, before)]
    return x.new_empty(x.shape), *integers, *kept


EXPERTS = Operator(
    "grouped_experts_triton",
    "Tensor x, Tensor chosen, Tensor weights, Tensor up, Tensor down, str activation, bool gated, bool keep, "
    "bool of_tokens, bool of_matrices",
    visible=1,
    forward=_forward,
    backward=_backward,
    fake=_fake,
    saved=5,
)
