"""What test_aot.py compiles for sm_90 without a GPU: a few representative launches of every operator.

A case is (kernel, signature, constexprs, num_warps, num_stages, *more), with the argument types really
launched. `kernel`: the jitted function. `signature`: {argument: type} in Triton's spelling ("*bf16", "i32",
"fp32"), ":16" behind it where the pointer or number is a multiple of 16, which a launch finds out by itself
and which decides how wide the loads are ("*bf16:16", "i32:16"). `constexprs`: {argument: value} for the rest,
that is `tl.constexpr` arguments, tensors that are None, numbers that are 1. `more`: further options of the
compiler, and the bytes of a thread's stack that are allowed, with the reason beside them. A case takes 1 to 4
seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from . import convolutions, experts, selective_scan, ssd, steps, tokens, vocabulary
from .case import Case

__all__ = ["CASES", "Case"]

CASES: dict[str, Callable[[], list[Case]]] = {
    "bidirectional_conv1d": convolutions.both_ways,
    "bidirectional_scan": selective_scan.both_ways,
    "bidirectional_ssd": ssd.both_ways,
    "causal_conv1d": convolutions.one_way,
    "gated_product": tokens.products,
    "grouped_experts": experts.products,
    "mamba2_step": tokens.mixers,
    "normed_gated_product": tokens.normed_products,
    "rms_norm": tokens.norms,
    "selective_scan": selective_scan.one_way,
    "selective_state_update": steps.selective,
    "silu_mul": tokens.gates,
    "skinny_linear": tokens.linears,
    "softmax_kl": vocabulary.divergence,
    "ssd_scan": ssd.one_way,
    "ssd_state_update": steps.ssd,
}
