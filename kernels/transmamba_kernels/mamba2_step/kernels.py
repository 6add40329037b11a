# mypy: ignore-errors
"""The Triton kernels of one token of a Mamba-2 mixer.

Where every head has its own B and C (G = H) one program has a head's state, its channels of the convolution
and, where its channels are a group of the norm, that too. Else B and C are what several programs read and one
may move on: the convolution is a launch of its own before, and the norm one behind.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..causal_conv1d.kernels import updated
from ..rms_norm.kernels import normed
from ..triton_common import LOG2E, silu, softplus


@triton.jit
def row_of(tile, ROW: tl.constexpr):
    """(W,) of a tile (4, W)."""
    return tl.sum(tl.where(tl.arange(0, 4)[:, None] == ROW, tile, 0.0), axis=0)


@triton.jit
def head_kernel(
    projected,
    convolved,
    conv_state,
    state,
    weight,
    bias,
    dt_bias,
    A_log,
    D,
    norm_weight,
    y,
    heads: tl.constexpr,
    width: tl.constexpr,
    states: tl.constexpr,
    per_group: tl.constexpr,
    channels: tl.constexpr,
    eps,
    stride_pb,
    stride_vb,
    stride_cb,
    stride_cd: tl.constexpr,
    stride_ck: tl.constexpr,
    stride_sb,
    stride_sh,
    stride_sp: tl.constexpr,
    stride_sn: tl.constexpr,
    K: tl.constexpr,
    S: tl.constexpr,
    BP: tl.constexpr,
    NP: tl.constexpr,
    CONV: tl.constexpr,
    NORM: tl.constexpr,
):
    """BP rows of one head's (P, N) state. Grid (B H blocks of P,): a second axis would end at 65535.

    CONV: x, B and C come from `projected` through the convolution, else as they are from `convolved`; only
    where G = H and BP = NP. NORM: y is gated and normed. For both a program has all of a head's rows.
    """
    blocks = tl.cdiv(width, BP)
    h = tl.program_id(0) // blocks % heads
    b = tl.cast(tl.program_id(0) // blocks // heads, tl.int64)
    p = (tl.program_id(0) % blocks) * BP + tl.arange(0, BP)
    n = tl.arange(0, NP)
    rows, deep = p < width, n < states
    tile = rows[:, None] & deep[None, :]
    place = (
        state
        + b * stride_sb
        + tl.cast(h, tl.int64) * stride_sh
        + p[:, None] * stride_sp
        + n[None, :] * stride_sn
    )
    # first: it is nearly all that there is to wait for
    held = tl.load(place, mask=tile, other=0.0).to(tl.float32)
    inner = heads * width
    projected += b * stride_pb
    at = h * width + p
    first = inner + h // per_group * states
    second = first + heads // per_group * states
    if CONV:
        # x, B and C as rows of one tile, a number a thread. As vectors of their own, of fewer numbers than
        # there are threads, the compiler has every warp load and convolve them again.
        row = tl.arange(0, 4)[:, None]
        column = tl.arange(0, NP)[None, :]
        c = column + tl.where(row == 0, h * width, tl.where(row == 1, first, second))
        real = (row < 3) & (column < tl.where(row == 0, width, states))
        conv_state += b * stride_cb
        tokens = tl.load(projected + inner + c, mask=real, other=0.0).to(tl.float32)
        tokens = silu(updated(tokens, conv_state, weight, bias, c, real, stride_cd, stride_ck, K, S))
        value, entry, exit_ = row_of(tokens, 0), row_of(tokens, 1), row_of(tokens, 2)
    else:
        convolved += b * stride_vb
        value = tl.load(convolved + at, mask=rows, other=0.0)
        entry = tl.load(convolved + first + n, mask=deep, other=0.0)
        exit_ = tl.load(convolved + second + n, mask=deep, other=0.0)
    dt = tl.load(projected + inner + channels + h).to(tl.float32) + tl.load(dt_bias + h).to(tl.float32)
    dt = softplus(dt)
    rate = tl.exp2(tl.load(A_log + h).to(tl.float32) * LOG2E)
    new = held * tl.exp2(-dt * rate * LOG2E) + (dt * value)[:, None] * entry[None, :]
    tl.store(place, new.to(state.dtype.element_ty), mask=tile)
    out = tl.sum(new * exit_[None, :], axis=1) + value * tl.load(D + h).to(tl.float32)
    if NORM:
        out *= silu(tl.load(projected + at, mask=rows, other=0.0).to(tl.float32))
        scales = tl.load(norm_weight + at, mask=rows, other=0.0).to(tl.float32)
        out = normed(out, scales, width, eps, projected.dtype.element_ty)
    tl.store(y + b * inner + at, out.to(y.dtype.element_ty), mask=rows)
