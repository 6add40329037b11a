# mypy: ignore-errors
"""The Triton kernel of the root mean square norm."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu


@triton.jit
def norm_kernel(x, gate, weight, y, groups, size, eps, stride_x, stride_g, BD: tl.constexpr):
    """One group of one row. Grid (rows groups,): a second axis would end at 65535. The quotient is
    rounded before the weight multiplies it.
    """
    row = tl.cast(tl.program_id(0) // groups, tl.int64)
    n = tl.arange(0, BD)
    inside = n < size
    d = tl.program_id(0) % groups * size + n
    values = tl.load(x + row * stride_x + d, mask=inside, other=0.0).to(tl.float32)
    if gate is not None:
        values *= silu(tl.load(gate + row * stride_g + d, mask=inside, other=0.0).to(tl.float32))
    scales = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / size + eps)
    out = (values * scale).to(x.dtype.element_ty).to(tl.float32) * scales
    tl.store(y + row * groups * size + d, out.to(y.dtype.element_ty), mask=inside)
