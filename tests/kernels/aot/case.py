"""A launch as the tests compile it, without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transmamba_kernels.triton_common import FUSED

Case = tuple[Any, ...]

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}


def case(
    kernel: Any, values: Mapping[str, Any], warps: int, stages: int, spills: int = 0, **options: Any
) -> Case:
    """A case, with the types that a launch with these arguments would find.

    spills: bytes of a thread's stack that are allowed. options: further ones of the compiler.
    """
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        if isinstance(value, Tensor):
            # What torch allocates begins at a multiple of 16.
            aligned = "" if parameter.do_not_specialize_on_alignment else ":16"
            signature[name] = f"*{TYPES[value.dtype]}{aligned}"
        elif parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            constexprs[name] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32:16" if value % 16 == 0 else "i32"
    return kernel, signature, constexprs, warps, stages, {**FUSED, **options}, spills
