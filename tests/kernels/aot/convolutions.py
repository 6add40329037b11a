"""The convolutions' kernels: 4 taps and 8, with all that a launch may have and with little of it."""

from __future__ import annotations

from typing import Any

from transmamba_kernels.causal_conv1d.backward import backward_kernel
from transmamba_kernels.causal_conv1d.kernels import forward_kernel, update_kernel
from transmamba_kernels.causal_conv1d.launch import GROUP

from .case import Case


def one_way() -> list[Case]:
    plain = of_types(forward_kernel, "bf16", 256)
    everything = {"seq_idx": "*i64", "lengths": "*i64", "initial": "*fp32:16"}
    return [
        plain,
        of_types(forward_kernel, "fp32", 256),
        of_types(forward_kernel, "bf16", 256, everything | {"final": "*bf16:16"}, REVERSE=True),
        of_types(forward_kernel, "bf16", 256, bias=None),
        of_types(backward_kernel, "bf16", 128),
        of_types(backward_kernel, "bf16", 128, bias=None),
        of_types(backward_kernel, "fp32", 128),
        of_types(backward_kernel, "fp32", 64, K=8, KP=8),
        of_types(
            backward_kernel,
            "bf16",
            64,
            everything | {"dfinal": "*bf16:16", "dinitial": "*fp32:16"},
            REVERSE=True,
        ),
        of_types(
            update_kernel, "bf16", 128, {"stride_sb": "i32", "stride_sd": "i32", "stride_sk": "i32"}, S=4
        ),
    ]


def both_ways() -> list[Case]:
    both = {"weight_b": "*fp32:16", "bias_b": "*fp32:16"}
    packed = both | {"seq_idx": "*i64", "lengths": "*i64"}
    return [
        of_types(forward_kernel, "bf16", 128, both | {"y_b": "*bf16:16"}),
        # The students' filters without a bias in one direction.
        of_types(forward_kernel, "bf16", 128, {"weight_b": "*fp32:16", "y_b": "*bf16:16"}, SILU=False),
        of_types(backward_kernel, "bf16", 64, {"weight_b": "*fp32:16", "dy_b": "*bf16:16"}, SILU=False),
        of_types(forward_kernel, "fp32", 128, packed | {"y_b": "*fp32:16"}),
        of_types(backward_kernel, "bf16", 64, both | {"dy_b": "*bf16:16"}),
        of_types(backward_kernel, "fp32", 64, packed | {"dy_b": "*fp32:16"}),
    ]


def of_types(
    kernel: Any, dtype: str, block: int, more: dict[str, str] | None = None, **constants: Any
) -> Case:
    """A case: 4 taps, x of `dtype`, float32 filters; `more`: what else is there."""
    absent = {
        "weight_b",
        "bias_b",
        "y_b",
        "dy_b",
        "initial",
        "seq_idx",
        "lengths",
        "final",
        "dfinal",
        "dinitial",
    }
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {
        "K": 4,
        "KP": 4,
        "BD": block,
        "GROUP": GROUP,
        "SILU": True,
        "REVERSE": False,
    }
    for name in kernel.arg_names:
        if more and name in more:
            signature[name] = more[name]
        elif name in absent or name in constants:
            constexprs[name] = None
        elif name in ("x", "y", "dx", "dy", "state"):
            signature[name] = f"*{dtype}:16"
        elif name in ("weight", "bias", "partials"):
            signature[name] = "*fp32:16"
        elif name in ("length", "blocks", "chunks", "tokens", "groups"):
            signature[name] = "i32"
        elif name not in constexprs:
            signature[name] = "i32:16"
    constexprs = {name: value for name, value in constexprs.items() if name in kernel.arg_names}
    return kernel, signature, constexprs | constants, 4 if kernel is update_kernel else 1, 3
