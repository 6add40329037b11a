# mypy: ignore-errors
# ruff: noqa: RUF005
"""The Triton kernels of one token of a Mamba-2 mixer.

Where every head has its own B and C (G = H) one program has a head's state, its channels of the convolution
and, where its channels are a group of the norm, that too. Else B and C are what several programs read and one
may move on: the convolution is a launch of its own before, and the norm one behind.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..causal_conv1d.kernels import updated
from ..early_launch import begin, fetch
from ..rms_norm.kernels import normed
from ..triton_common import LOG2E, silu, softplus


@triton.jit
def row_of(tile, ROW: tl.constexpr):
    """(W,) of a tile (4, W)."""
    return tl.sum(tl.where(tl.arange(0, 4)[:, None] == ROW, tile, 0.0), axis=0)


@triton.jit
def part_of(state, p, n, width, states, stride_sp, stride_sn):
    """Where rows p of a head's state lie, which are there, and what they hold."""
    place = state + p[:, None] * stride_sp + n[None, :] * stride_sn
    tile = (p < width)[:, None] & (n < states)[None, :]
    return place, tile, tl.load(place, mask=tile, other=0.0).to(tl.float32)


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
    PARTS: tl.constexpr,
    CONV: tl.constexpr,
    NORM: tl.constexpr,
    EARLY: tl.constexpr,
):
    """BP rows of one head's (P, N) state. Grid (B H blocks of P,): a second axis would end at 65535.

    CONV: x, B and C come from `projected` through the convolution, else as they are from `convolved`; only
    where G = H and BP = NP. NORM: y is gated and normed. For both a program has all of a head's rows.
    """
    blocks = tl.cdiv(width, BP)
    h = tl.program_id(0) // blocks % heads
    b = tl.cast(tl.program_id(0) // blocks // heads, tl.int64)
    first_row = (tl.program_id(0) % blocks) * BP
    n = tl.arange(0, NP)
    deep = n < states
    state += b * stride_sb + tl.cast(h, tl.int64) * stride_sh
    inner = heads * width
    projected += b * stride_pb
    if EARLY and stride_sn == 1:
        # a line of L2 has 128 bytes
        LINE: tl.constexpr = 1024 // state.dtype.element_ty.primitive_bitwidth
        lines = tl.minimum(tl.arange(0, (NP + LINE - 1) // LINE) * LINE, states - 1)
        each = tl.minimum(first_row + tl.arange(0, BP), width - 1)
        fetch(state + each[:, None] * stride_sp + lines[None, :], EARLY)
    begin(EARLY)
    # All that can be is loaded here: no load begins before a store that stands in front of it.
    p = first_row + tl.arange(0, BP // PARTS)
    place, tile, held = part_of(state, p, n, width, states, stride_sp, stride_sn)
    dt = tl.load(projected + inner + channels + h).to(tl.float32) + tl.load(dt_bias + h).to(tl.float32)
    rate = tl.exp2(tl.load(A_log + h).to(tl.float32) * LOG2E)
    skip = tl.load(D + h).to(tl.float32)
    dt = softplus(dt)
    decay = tl.exp2(-dt * rate * LOG2E)
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
        values, entry, exit_ = row_of(tokens, 0), row_of(tokens, 1), row_of(tokens, 2)
    else:
        convolved += b * stride_vb
        entry = tl.load(convolved + first + n, mask=deep, other=0.0)
        exit_ = tl.load(convolved + second + n, mask=deep, other=0.0)
    outs = ()
    squares = 0.0
    for part in tl.static_range(PARTS):
        rows = p < width
        at = h * width + p
        if CONV:
            value = tl.sum(tl.where(p[:, None] == n[None, :], values[None, :], 0.0), axis=1)
        else:
            value = tl.load(convolved + at, mask=rows, other=0.0)
        if NORM:
            gate = tl.load(projected + at, mask=rows, other=0.0).to(tl.float32)
        new = held * decay + (dt * value)[:, None] * entry[None, :]
        here, inside = place, tile
        p += BP // PARTS
        if part + 1 < PARTS:
            place, tile, held = part_of(state, p, n, width, states, stride_sp, stride_sn)
        tl.store(here, new.to(state.dtype.element_ty), mask=inside)
        out = tl.sum(new * exit_[None, :], axis=1) + value * skip
        if NORM:
            out *= silu(gate)
            squares += tl.sum(out * out, axis=0)
        outs = outs + (out,)
    for part in tl.static_range(PARTS):
        p = first_row + part * (BP // PARTS) + tl.arange(0, BP // PARTS)
        at = h * width + p
        out = outs[part]
        if NORM:
            scales = tl.load(norm_weight + at, mask=p < width, other=0.0).to(tl.float32)
            out = normed(out, squares, scales, width, eps, projected.dtype.element_ty)
        tl.store(y + b * inner + at, out.to(y.dtype.element_ty), mask=p < width)
