"""The divergence's kernels, as a language model's logits launch them."""

from __future__ import annotations

from transmamba_kernels.softmax_kl import gpu
from transmamba_kernels.softmax_kl.kernels import backward_kernel, forward_kernel

from .case import Case


def divergence() -> list[Case]:
    cases: list[Case] = []
    for dtype in ("bf16", "fp32"):
        for kernel in (forward_kernel, backward_kernel):
            signature = dict.fromkeys(("student", "teacher", "out"), f"*{dtype}:16")
            signature |= dict.fromkeys(("kl", "norm_s", "norm_t", "grad"), "*fp32:16")
            signature |= dict.fromkeys(("V", "stride_s", "stride_t"), "i32:16")
            signature |= dict.fromkeys(("scale", "slope"), "fp32")
            signature = {name: kind for name, kind in signature.items() if name in kernel.arg_names}
            cases.append((kernel, signature, {"BLOCK": gpu._BLOCK}, 8, 3))
    return cases
