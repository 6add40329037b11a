"""The scans' kernels, with the types that they are launched with: Vim-S, few warps, segments, float32, large
states."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transmamba_kernels.bidirectional_scan.gpu import BLOCK
from transmamba_kernels.bidirectional_scan.kernels import gate_backward_kernel, gate_kernel
from transmamba_kernels.selective_scan import launch
from transmamba_kernels.selective_scan.plan import Scan

from .case import Case, case

# With 16 states registers are capped for three warps where two would fit; what spills lies outside the loop
# over the steps, and without the cap the kernel is a third slower.
SPILLS = {"backward_kernel": 256}
# Of the forward's kernel where warps are few: no smaller group of steps is as quick.
FAR_SPILLS = 32


def of_shape(
    batch: int,
    length: int,
    channels: int,
    states: int,
    dtype: torch.dtype,
    z: bool = True,
    packed: bool = False,
) -> Scan:
    """Tensors without data."""

    def empty(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    u, delta, gate = (empty(batch, length, channels, of=dtype) for _ in range(3))
    B, C = (empty(batch, length, states, of=dtype) for _ in range(2))
    A, D, bias = empty(channels, states), empty(channels), empty(channels)
    ids = empty(batch, length, of=torch.int32) if packed else None
    return Scan.make(u, delta, A, B, C, D, gate if z else None, bias, ids, True, False)


def launched(given: Scan, merge: bool = False) -> list[Case]:
    """A case for every kernel that the forward and the backward launch."""
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
        capped = SPILLS if values["N"] == 16 else {}
        spills = FAR_SPILLS if values.get("FAR") else capped.get(kernel.__name__, 0)
        found.append(case(kernel, values, warps, 1, spills, **options))

    with mock.patch.object(launch, "launch", record):
        out = launch.run_forward(given, None, True, True, other=given.u if merge else None)
        assert out.kept is not None
        launch.run_backward(given, (out.kept, out.rates, out.rows), given.u, None)
    return found


def one_way() -> list[Case]:
    return [
        *launched(of_shape(64, 197, 768, 16, torch.bfloat16)),
        *launched(of_shape(64, 784, 384, 16, torch.bfloat16)),
        *launched(of_shape(1, 16384, 1024, 16, torch.bfloat16)),
        *launched(of_shape(64, 197, 768, 16, torch.float32, z=False)),
        *launched(of_shape(8, 2048, 768, 16, torch.bfloat16, packed=True)),
        *launched(of_shape(64, 40, 128, 64, torch.float32)),
        *launched(of_shape(64, 40, 128, 128, torch.float32)),
        *launched(of_shape(64, 40, 128, 256, torch.float32)),
        *launched(of_shape(1, 4096, 128, 256, torch.bfloat16)),
    ]


def both_ways() -> list[Case]:
    """The scan that merges, and the gates."""
    merging = launched(of_shape(64, 197, 768, 16, torch.bfloat16), merge=True)[:2]
    numbers = dict.fromkeys(("COUNT", "DIM", "sz_b", "sz_l", "LENGTH"), "i32")
    gates = []
    for kernel, flags in ((gate_kernel, {}), (gate_backward_kernel, {"BRANCHES": True})):
        pointers = {name: "*bf16:16" for name in kernel.arg_names if name.endswith("_ptr")}
        gates.append((kernel, pointers | numbers, {"HAS_Z": True, "BLOCK": BLOCK, **flags}, 8, 3))
    return [*merging, *gates]
