"""Which kernels the scans launch with which types, found without a GPU: for their `aot_cases`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import launch
from .launch import Scan

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}
# Registers are capped for three warps where two would fit; what spills lies outside the loop over the steps,
# and without the cap the kernel is a third slower.
SPILLS = {"backward_kernel": 256}


def scan(batch: int, length: int, channels: int, states: int, dtype: torch.dtype, z: bool = True) -> Scan:
    """Tensors without data."""

    def empty(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    u, delta, gate = (empty(batch, length, channels, of=dtype) for _ in range(3))
    B, C = (empty(batch, length, states, of=dtype) for _ in range(2))
    A, D, bias = empty(channels, states), empty(channels), empty(channels)
    return Scan.make(u, delta, A, B, C, D, gate if z else None, bias, None, True, False)


def cases(given: Scan, merge: bool = False) -> list[Any]:
    """An entry of `aot_cases` for every kernel that the forward and the backward launch."""
    found: list[Any] = []

    def record(
        kernel: Any,
        grid: tuple[int, ...],
        *arguments: Any,
        warps: int,
        registers: int | None = None,
        **rest: Any,
    ) -> None:
        values = {**dict(zip(kernel.arg_names, arguments, strict=False)), **rest}
        signature: dict[str, str] = {}
        constexprs: dict[str, Any] = {}
        for parameter in kernel.params:
            name, value = parameter.name, values[parameter.name]
            if isinstance(value, Tensor):
                aligned = "" if parameter.do_not_specialize_on_alignment else ":16"
                signature[name] = f"*{TYPES[value.dtype]}{aligned}"
            elif parameter.is_constexpr or value == 1:
                constexprs[name] = value
            else:
                signature[name] = "i32:16" if value % 16 == 0 else "i32"
        options = {"enable_fp_fusion": True} | ({} if registers is None else {"maxnreg": registers})
        found.append((kernel, signature, constexprs, warps, 1, options, SPILLS.get(kernel.__name__, 0)))

    launch.launcher = record
    try:
        out = launch.run_forward(given, None, True, True, other=given.u if merge else None)
        assert out.kept is not None
        launch.run_backward(given, out.kept, given.u, None)
    finally:
        launch.launcher = launch.launch
    return found
