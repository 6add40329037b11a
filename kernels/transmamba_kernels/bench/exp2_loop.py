# mypy: ignore-errors
"""A loop of nothing but exp2, eight independent chains a thread. Imports triton."""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK, STEPS = 1024, 512


@triton.jit
def exp2_kernel(out, steps, BLOCK: tl.constexpr):
    place = out + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(place)
    for _ in range(steps):
        x = tl.exp2(-x)  # settles at 0.64, far from what the unit has to rescale
    tl.store(place, x)
