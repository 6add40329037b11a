"""Experts' kernels, as a layer of 512 channels and 1,536 neurons launches them, and one of SmolLM2's size."""

from __future__ import annotations

from typing import Any

import torch
from transmamba_kernels.grouped_experts.launch import Problem

from .case import Case, case


def of(width: int, neurons: int, each: int, activation: str, gated: bool, dtype: torch.dtype) -> list[Case]:
    """All launches of a forward and a backward, none of which is run."""
    cases: list[Case] = []

    def record(
        kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int
    ) -> None:
        cases.append(case(kernel, arguments, warps, stages))

    experts, count = 8, 4096
    x = torch.empty(count, width, dtype=dtype, device="meta")
    up = x.new_empty(experts, neurons * (1 + gated), width)
    problem = Problem(
        x,
        x.new_empty((count, each), dtype=torch.int64),
        x.new_empty((count, each), dtype=torch.float32),
        up,
        x.new_empty(experts, width, neurons),
        activation,
        gated,
        record,
    )
    routing = problem.route()
    y, hidden, before = problem.forward(routing, True)
    problem.gradients(y, routing, hidden, before, True, True)
    return cases


def products() -> list[Case]:
    half, single = torch.bfloat16, torch.float32
    found = of(512, 1536, 1, "relu", False, half)
    # what sorts is the same for all
    for more in (of(576, 1536, 2, "silu", True, half), of(576, 1536, 2, "silu", True, single)):
        found += [each for each in more if each[4] > 1]
    silu = of(576, 1536, 2, "silu", False, half)
    found += [each for each in silu if each[0].__name__ in ("up_kernel", "hidden_grad_kernel")]
    return [each for i, each in enumerate(found) if each not in found[:i]]
