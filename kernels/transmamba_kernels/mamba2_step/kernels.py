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
def row_of(pair, ROW: tl.constexpr):
    """(W,) of a pair (2, W)."""
    return tl.sum(tl.where(tl.arange(0, 2)[:, None] == ROW, pair, 0.0), axis=0)


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
    where G = H. NORM: y is gated and normed. For both a program has all of a head's rows, BP of at least P.
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
    # In pairs, one number a thread: as vectors of their own they would lie as the tile's rows and columns do,
    # many a thread and each in many threads.
    pair = tl.arange(0, 2)[:, None]
    pair_n, pair_p = (pair < 2) & deep[None, :], (pair < 2) & rows[None, :]
    matrix = inner + (pair * (heads // per_group) + h // per_group) * states + n[None, :]
    own, pair_p = at[None, :] + pair * 0, rows[None, :] & (pair == 0)
    if CONV:
        conv_state += b * stride_cb
        token = projected + inner
        both = tl.load(token + matrix, mask=pair_n, other=0.0).to(tl.float32)
        both = silu(updated(both, conv_state, weight, bias, matrix, pair_n, stride_cd, stride_ck, K, S))
        value = tl.load(token + own, mask=pair_p, other=0.0).to(tl.float32)
        value = silu(updated(value, conv_state, weight, bias, own, pair_p, stride_cd, stride_ck, K, S))
    else:
        convolved += b * stride_vb
        both = tl.load(convolved + matrix, mask=pair_n, other=0.0)
        value = tl.load(convolved + own, mask=pair_p, other=0.0)
    entry, exit_, value = row_of(both, 0), row_of(both, 1), row_of(value, 0)
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
