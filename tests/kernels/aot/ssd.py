"""The SSD kernels, with the types that they are launched with: Mamba-2 and ssd_vit, few chunks and many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transmamba_kernels.ssd_scan.launch import Problem

from .case import Case, case

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


def launched(problem: Problem, final: bool = False) -> list[Case]:
    """A case for every kernel that the forward and the backward launch."""
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


def one_way() -> list[Case]:
    mamba = tensors((8, 2048, 32, 64), 1, 128, torch.bfloat16, "D")
    exact = tensors((64, 256, 12, 64), 1, 64, torch.float32, "D")
    packed = tensors((1, 16384, 32, 64), 1, 128, torch.bfloat16, "D", "seq_idx")
    return [case for given in (mamba, exact, packed) for case in launched(Problem(**given, softplus=True))]


def both_ways() -> list[Case]:
    found: list[Case] = []
    for length in (197, 785):
        given = tensors((64, length, 6, 64), 6, 64, torch.bfloat16, "A_b")
        for split in (False, True):
            found += launched(Problem(**given, softplus=True, back=True, split=split))
    return found
