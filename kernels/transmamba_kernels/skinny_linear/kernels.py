# mypy: ignore-errors
"""The Triton kernels of a few rows' product with a matrix, and with the two of a gated MLP's first half."""

from __future__ import annotations

import triton
import triton.language as tl

from ..causal_conv1d.kernels import updated
from ..triton_common import silu


@triton.jit
def linear_kernel(
    x,
    weight,
    residual,
    y,
    conv_state,
    conv_weight,
    conv_bias,
    convolved,
    norm_weight,
    weighed,
    squares,
    count,
    columns,
    width,
    first,
    channels,
    stride_x,
    stride_r,
    stride_cb,
    stride_cd,
    stride_ck,
    R: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    TAPS: tl.constexpr,
    KEPT: tl.constexpr,
):
    """BN rows of the matrix, as the left side of the product, and all rows of x; BK divides K. Grid
    (blocks of N,).

    With `convolved` (M, C), float32, it holds what a convolution with SiLU makes of columns `first` to
    `first` + C, each row the newest token of its `conv_state` (M, C, KEPT), which is moved on.

    With `weighed` (M, N) it holds y norm_weight, and `squares` (blocks, R) what each block adds to the rows'
    sums of y^2: all that a norm of y needs, but for the division, which `gated_kernel` makes.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    r, k = tl.cast(tl.arange(0, R), tl.int64), tl.arange(0, BK)
    inside, real = n < columns, r < count
    # rows beyond the last are the last again: what they say is not stored
    n = tl.where(inside, n, columns - 1)
    place = tl.cast(n, tl.int64)[:, None] * width + k[None, :]
    tokens = x + tl.where(real, r, 0)[None, :] * stride_x + k[:, None]
    total = tl.zeros((BN, R), tl.float32)
    for start in range(0, width, BK):
        matrix = tl.load(weight + place + start, eviction_policy="evict_first").to(DOT)
        total = tl.dot(matrix, tl.load(tokens + start).to(DOT), total)
    stored = inside[:, None] & real[None, :]
    out = total.to(y.dtype.element_ty)
    if residual is not None:
        more = tl.load(residual + r[None, :] * stride_r + n[:, None], mask=stored, other=0.0)
        out = (more.to(tl.float32) + out.to(tl.float32)).to(y.dtype.element_ty)
    tl.store(y + r[None, :] * columns + n[:, None], out, mask=stored)
    if weighed is not None:
        wide = out.to(tl.float32)
        scales = tl.load(norm_weight + n).to(tl.float32)
        scaled = (wide * scales[:, None]).to(y.dtype.element_ty)
        tl.store(weighed + r[None, :] * columns + n[:, None], scaled, mask=stored)
        sums = tl.sum(tl.where(stored, wide * wide, 0.0), axis=0)
        tl.store(squares + tl.program_id(0) * R + r, sums)
    if convolved is not None:
        mixed = stored & ((n >= first) & (n < first + channels))[:, None]
        c = tl.where(mixed, n[:, None] - first, 0)
        state = conv_state + r[None, :] * stride_cb
        tokens = out.to(tl.float32)
        tokens = updated(tokens, state, conv_weight, conv_bias, c, mixed, stride_cd, stride_ck, TAPS, KEPT)
        tl.store(convolved + r[None, :] * channels + c, silu(tokens), mask=mixed)


@triton.jit
def gated_kernel(
    x,
    gate,
    up,
    y,
    squares,
    blocks,
    eps,
    count,
    columns,
    width,
    stride_x,
    R: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    DOT: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """As `linear_kernel`, of two matrices. With `squares` (blocks, R), parts of rows' sums of squares, x is
    what its `weighed` holds, and the products are divided by the root of the mean.
    """
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    r, k = tl.cast(tl.arange(0, R), tl.int64), tl.arange(0, BK)
    inside, real = n < columns, r < count
    n = tl.where(inside, n, columns - 1)
    place = tl.cast(n, tl.int64)[:, None] * width + k[None, :]
    tokens = x + tl.where(real, r, 0)[None, :] * stride_x + k[:, None]
    opened = tl.zeros((BN, R), tl.float32)
    value = tl.zeros((BN, R), tl.float32)
    for start in range(0, width, BK):
        one = tl.load(gate + place + start, eviction_policy="evict_first").to(DOT)
        two = tl.load(up + place + start, eviction_policy="evict_first").to(DOT)
        seen = tl.load(tokens + start).to(DOT)
        opened = tl.dot(one, seen, opened)
        value = tl.dot(two, seen, value)
    dtype = y.dtype.element_ty
    if squares is not None:
        b = tl.arange(0, BLOCKS)
        parts = tl.load(squares + b[:, None] * R + r[None, :], mask=(b < blocks)[:, None], other=0.0)
        scale = tl.rsqrt(tl.sum(parts, axis=0) / width + eps)[None, :]
        opened *= scale
        value *= scale
    opened = silu(opened.to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    out = opened * value.to(dtype).to(tl.float32)
    tl.store(y + r[None, :] * columns + n[:, None], out.to(dtype), mask=inside[:, None] & real[None, :])
