# mypy: ignore-errors
"""The Triton kernel of the root mean square norm."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu


@triton.jit
def normed(values, weight, count, eps, rounded: tl.constexpr):
    """weight * values / rms(values), rounded in between; values are 0 beyond the first `count`."""
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / count + eps)
    return (values * scale).to(rounded).to(tl.float32) * weight


@triton.jit
def norm_kernel(x, gate, weight, y, groups, size, eps, stride_x, stride_g, BD: tl.constexpr):
    """One group of one row. Grid (rows groups,): a second axis would end at 65535."""
    row = tl.cast(tl.program_id(0) // groups, tl.int64)
    n = tl.arange(0, BD)
    inside = n < size
    d = tl.program_id(0) % groups * size + n
    values = tl.load(x + row * stride_x + d, mask=inside, other=0.0).to(tl.float32)
    if gate is not None:
        values *= silu(tl.load(gate + row * stride_g + d, mask=inside, other=0.0).to(tl.float32))
    scales = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    out = normed(values, scales, size, eps, x.dtype.element_ty)
    tl.store(y + row * groups * size + d, out.to(y.dtype.element_ty), mask=inside)
