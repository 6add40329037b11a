"""The decode steps' kernels, in the layouts that models call them with."""

from __future__ import annotations

from transmamba_kernels.selective_state_update import gpu as selective_gpu
from transmamba_kernels.selective_state_update.kernels import step_kernel as selective_kernel
from transmamba_kernels.ssd_state_update import gpu as ssd_gpu
from transmamba_kernels.ssd_state_update.kernels import step_kernel as ssd_kernel

from .case import Case


def selective() -> list[Case]:
    cases: list[Case] = []
    for dtype, states, grouped in (("fp32", 16, False), ("bf16", 64, True)):
        signature = {name: "i32:16" for name in selective_kernel.arg_names if name.startswith("stride")}
        signature |= dict.fromkeys(("channels", "states", "per_group"), "i32:16")
        signature |= dict.fromkeys(("u", "delta", "B", "C", "z", "y"), "*bf16:16")
        signature |= dict.fromkeys(("A", "D", "delta_bias"), "*fp32:16") | {"state": f"*{dtype}:16"}
        constants = {"stride_sn": 1, "stride_an": 1, "BD": selective_gpu.TILE // states, "NP": states}
        for name in constants:
            signature.pop(name, None)
        constants |= {"GROUPED": grouped, "SOFTPLUS": True}
        cases.append((selective_kernel, signature, constants, selective_gpu.WARPS, 3))
    return cases


def ssd() -> list[Case]:
    cases: list[Case] = []
    for dtype, states in (("fp32", 128), ("bf16", 64)):
        signature = {name: "i32:16" for name in ssd_kernel.arg_names if name.startswith("stride")}
        signature |= dict.fromkeys(("heads", "width", "states", "per_group"), "i32:16")
        signature |= dict.fromkeys(("x", "delta", "B", "C", "z", "y"), "*bf16:16")
        signature |= dict.fromkeys(("A", "D", "delta_bias"), "*fp32:16") | {"state": f"*{dtype}:16"}
        constants = dict.fromkeys(("stride_sn", "stride_th", "stride_ah", "stride_dh", "stride_fh"), 1)
        constants |= {"BP": min(ssd_gpu.TILE // states, 64), "NP": states, "SOFTPLUS": True, "LOG": False}
        for name in constants:
            signature.pop(name, None)
        cases.append((ssd_kernel, signature, constants, 1, 3))
    return cases
