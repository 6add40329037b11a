# mypy: ignore-errors
"""The Triton kernel of one SSD token: a tile of a head's state in, one fused step, the tile out."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import LOG2E, silu, softplus


@triton.jit
def step_kernel(
    state,
    x,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    y,
    heads,
    width,
    states,
    per_group,
    stride_sb,
    stride_sh,
    stride_sp,
    stride_sn,
    stride_xb,
    stride_xh,
    stride_tb,
    stride_th,
    stride_zb,
    stride_zh,
    stride_ah,
    stride_bb,
    stride_bg,
    stride_cb,
    stride_cg,
    stride_dh,
    stride_dp,
    stride_fh,
    BP: tl.constexpr,
    NP: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    LOG: tl.constexpr,
):
    """BP rows of one head's (P, N) state. Grid (B H blocks of P,): a second axis would end at 65535.

    LOG: A is log(-A).
    """
    blocks = tl.cdiv(width, BP)
    h = tl.program_id(0) // blocks % heads
    b = tl.cast(tl.program_id(0) // blocks // heads, tl.int64)
    p = (tl.program_id(0) % blocks) * BP + tl.arange(0, BP)
    n = tl.arange(0, NP)
    inside, deep = p < width, n < states
    tile = inside[:, None] & deep[None, :]
    place = (
        state
        + b * stride_sb
        + tl.cast(h, tl.int64) * stride_sh
        + p[:, None] * stride_sp
        + n[None, :] * stride_sn
    )
    held = tl.load(place, mask=tile, other=0.0).to(tl.float32)
    dt = tl.load(delta + b * stride_tb + h * stride_th).to(tl.float32)
    rate = tl.load(A + h * stride_ah).to(tl.float32)
    if LOG:
        rate = -tl.exp2(rate * LOG2E)
    value = tl.load(x + b * stride_xb + h * stride_xh + p, mask=inside, other=0.0).to(tl.float32)
    group = h // per_group
    entry = tl.load(B + b * stride_bb + group * stride_bg + n, mask=deep, other=0.0).to(tl.float32)
    exit_ = tl.load(C + b * stride_cb + group * stride_cg + n, mask=deep, other=0.0).to(tl.float32)
    if delta_bias is not None:
        dt += tl.load(delta_bias + h * stride_fh).to(tl.float32)
    if SOFTPLUS:
        dt = softplus(dt)
    new = held * tl.exp2(dt * rate * LOG2E) + (dt * value)[:, None] * entry[None, :]
    tl.store(place, new.to(state.dtype.element_ty), mask=tile)
    out = tl.sum(new * exit_[None, :], axis=1)
    if D is not None:
        out += value * tl.load(D + h * stride_dh + p * stride_dp, mask=inside, other=0.0).to(tl.float32)
    if z is not None:
        out *= silu(tl.load(z + b * stride_zb + h * stride_zh + p, mask=inside, other=0.0).to(tl.float32))
    tl.store(y + (b * heads + h) * width + p, out.to(y.dtype.element_ty), mask=inside)
