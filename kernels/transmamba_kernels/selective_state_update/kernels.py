# mypy: ignore-errors
"""The Triton kernel of one selective-scan token: a tile of the state in, one fused step, the tile out."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import LOG2E, silu, softplus


@triton.jit
def step_kernel(
    state,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    y,
    channels,
    states,
    per_group,
    stride_sb,
    stride_sd,
    stride_sn,
    stride_ub,
    stride_tb,
    stride_zb,
    stride_ad,
    stride_an,
    stride_bb,
    stride_bg,
    stride_cb,
    stride_cg,
    BD: tl.constexpr,
    NP: tl.constexpr,
    GROUPED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """BD channels of one batch row. Grid (blocks of D, B) as one axis: a second would end at 65535."""
    blocks = tl.cdiv(channels, BD)
    d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    n = tl.arange(0, NP)[None, :]
    inside = d < channels
    tile = inside[:, None] & (n < states)
    # Everything is loaded before anything is stored: behind a store, which might write there, loads wait.
    place = b * stride_sb + tl.cast(d, tl.int64)[:, None] * stride_sd + n * stride_sn
    held = tl.load(state + place, mask=tile, other=0.0).to(tl.float32)
    rate = tl.load(A + d[:, None] * stride_ad + n * stride_an, mask=tile, other=0.0).to(tl.float32) * LOG2E
    dt = tl.load(delta + b * stride_tb + d, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(u + b * stride_ub + d, mask=inside, other=0.0).to(tl.float32)
    if GROUPED:
        group = (d // per_group)[:, None]
        entry = tl.load(B + b * stride_bb + group * stride_bg + n, mask=tile, other=0.0).to(tl.float32)
        exit_ = tl.load(C + b * stride_cb + group * stride_cg + n, mask=tile, other=0.0).to(tl.float32)
    else:
        entry = tl.load(B + b * stride_bb + n, mask=n < states, other=0.0).to(tl.float32)
        exit_ = tl.load(C + b * stride_cb + n, mask=n < states, other=0.0).to(tl.float32)
    if delta_bias is not None:
        dt += tl.load(delta_bias + d, mask=inside, other=0.0).to(tl.float32)
    if D is not None:
        skip = tl.load(D + d, mask=inside, other=0.0).to(tl.float32)
    if z is not None:
        gate = silu(tl.load(z + b * stride_zb + d, mask=inside, other=0.0).to(tl.float32))
    if SOFTPLUS:
        dt = softplus(dt)
    new = tl.exp2(dt[:, None] * rate) * held + (dt * value)[:, None] * entry
    tl.store(state + place, new.to(state.dtype.element_ty), mask=tile)
    out = tl.sum(new * exit_, axis=1)
    if D is not None:
        out += value * skip
    if z is not None:
        out *= gate
    tl.store(y + b * channels + d, out.to(y.dtype.element_ty), mask=inside)
