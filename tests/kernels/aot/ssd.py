"""Which kernels a call launches with which types, found without a GPU: for the `aot_cases` of the SSD ops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..aot import Case, case
from .launch import Problem

# Bytes a thread; see `launch.tiles` for why.
SPILLS, SPLIT_SPILLS = {"send_kernel": 128}, {"send_kernel": 288}


def tensors(
    shape: tuple[int, int, int, int], groups: int, depth: int, dtype: torch.dtype, *more: str
) -> dict[str, Any]:
    """Fields of a `Problem`, without data: x of `shape` (B, L, H, P), A and the bias float32, and `more`."""
    batch, length, heads, width = shape

    def empty(*size: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    found = {"x": empty(*shape, of=dtype), "delta": empty(*shape[:3], of=dtype)}
    found |= {name: empty(heads) for name in ("A", "bias")}
    found |= {name: empty(batch, length, groups, depth, of=dtype) for name in ("B", "C")}
    optional = {
        "z": empty(*shape, of=dtype),
        "delta_b": empty(*shape[:3], of=dtype),
        "A_b": empty(heads),
        "D": empty(heads),
        "initial_state": empty(batch, heads, width, depth),
        "seq_idx": empty(batch, length, of=torch.int32),
        "lengths": empty(batch, of=torch.int32),
    }
    return found | {name: optional[name] for name in more}


def cases(problem: Problem, final: bool = False) -> list[Case]:
    """An entry of `aot_cases` for every kernel that the forward and the backward launch."""
    found: list[Case] = []

    def record(
        kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int
    ) -> None:
        spills = SPLIT_SPILLS if problem.split else SPILLS
        found.append(case(kernel, arguments, warps, stages, spills.get(kernel.__name__, 0)))

    problem = replace(problem, launch=record)
    _, state = problem.forward(final)
    problem.gradients(problem.x, state)
    return found
