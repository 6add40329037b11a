"""Which kernels the scans launch with which types, found without a GPU: for their `aot_cases`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..aot import Case, case
from . import launch
from .launch import Scan

# Registers are capped for three warps where two would fit; what spills lies outside the loop over the steps,
# and without the cap the kernel is a third slower.
SPILLS = {"backward_kernel": 256}
# Of the forward's kernel where warps are few: no smaller group of steps is as quick.
FAR_SPILLS = 32


def scan(batch: int, length: int, channels: int, states: int, dtype: torch.dtype, z: bool = True) -> Scan:
    """Tensors without data."""

    def empty(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    u, delta, gate = (empty(batch, length, channels, of=dtype) for _ in range(3))
    B, C = (empty(batch, length, states, of=dtype) for _ in range(2))
    A, D, bias = empty(channels, states), empty(channels), empty(channels)
    return Scan.make(u, delta, A, B, C, D, gate if z else None, bias, None, True, False)


def cases(given: Scan, merge: bool = False) -> list[Case]:
    """An entry of `aot_cases` for every kernel that the forward and the backward launch."""
    found: list[Case] = []

    def record(
        kernel: Any,
        grid: tuple[int, ...],
        *arguments: Any,
        warps: int,
        registers: int | None = None,
        **rest: Any,
    ) -> None:
        values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **rest}
        options = {} if registers is None else {"maxnreg": registers}
        spills = FAR_SPILLS if values.get("FAR") else SPILLS.get(kernel.__name__, 0)
        found.append(case(kernel, values, warps, 1, spills, **options))

    launch.launcher = record
    try:
        out = launch.run_forward(given, None, True, True, other=given.u if merge else None)
        assert out.kept is not None
        launch.run_backward(given, (out.kept, out.rates, out.rows), given.u, None)
    finally:
        launch.launcher = launch.launch
    return found
