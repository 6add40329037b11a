# mypy: ignore-errors
"""The Triton kernel of a gated MLP's first half."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu


@triton.jit
def gated_kernel(
    x,
    gate,
    up,
    y,
    count,
    columns,
    width,
    stride_x,
    R: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
):
    """BN rows of both matrices, as the left side of their products, and all rows of x; BK divides K. Grid
    (blocks of N,).
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    r, k = tl.arange(0, R), tl.arange(0, BK)
    inside, real = n < columns, r < count
    # rows beyond the last are the last again: what they say is not stored
    place = tl.cast(tl.where(inside, n, columns - 1), tl.int64)[:, None] * width + k[None, :]
    tokens = x + tl.where(real, r, 0)[None, :] * stride_x + k[:, None]
    opened = tl.zeros((BN, R), tl.float32)
    value = tl.zeros((BN, R), tl.float32)
    for start in range(0, width, BK):
        one = tl.load(gate + place + start).to(DOT)
        two = tl.load(up + place + start).to(DOT)
        seen = tl.load(tokens + start).to(DOT)
        opened = tl.dot(one, seen, opened)
        value = tl.dot(two, seen, value)
    dtype = y.dtype.element_ty
    opened = silu(opened.to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    out = opened * value.to(dtype).to(tl.float32)
    tl.store(y + r[None, :] * columns + n[:, None], out.to(dtype), mask=inside[:, None] & real[None, :])
