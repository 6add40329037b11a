# mypy: ignore-errors
# ruff: noqa: RUF005
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
    batch,
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
    ROWS: tl.constexpr,
    GROUPED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):
    """BD channels of ROWS batch rows; A is read once for all of them, the states' loads come first.

    Grid (blocks of B times blocks of D,): a second axis would end at 65535.
    """
    blocks = tl.cdiv(channels, BD)
    d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    n = tl.arange(0, NP)[None, :]
    inside = d < channels
    tile = inside[:, None] & (n < states)
    first = (tl.program_id(0) // blocks) * ROWS
    place = tl.cast(d, tl.int64)[:, None] * stride_sd + n * stride_sn
    held = ()
    for row in tl.static_range(ROWS):
        b = first + row
        there = tile & (b + tl.zeros_like(n) < batch)
        held = held + (tl.load(state + tl.cast(b, tl.int64) * stride_sb + place, mask=there, other=0.0),)
    rate = tl.load(A + d[:, None] * stride_ad + n * stride_an, mask=tile, other=0.0).to(tl.float32) * LOG2E
    if D is not None:
        skip = tl.load(D + d, mask=inside, other=0.0).to(tl.float32)
    if delta_bias is not None:
        shift = tl.load(delta_bias + d, mask=inside, other=0.0).to(tl.float32)
    # Everything is loaded before anything is stored: behind a store, which might write there, loads wait.
    steps = ()
    values = ()
    gates = ()
    entries = ()
    exits = ()
    for row in tl.static_range(ROWS):
        b = tl.cast(first + row, tl.int64)
        mine = inside & (first + row + tl.zeros_like(d) < batch)
        there = tile & (first + row + tl.zeros_like(n) < batch)
        steps = steps + (tl.load(delta + b * stride_tb + d, mask=mine, other=0.0).to(tl.float32),)
        values = values + (tl.load(u + b * stride_ub + d, mask=mine, other=0.0).to(tl.float32),)
        if GROUPED:
            group = (d // per_group)[:, None]
            entry = tl.load(B + b * stride_bb + group * stride_bg + n, mask=there, other=0.0)
            exit_ = tl.load(C + b * stride_cb + group * stride_cg + n, mask=there, other=0.0)
        else:
            shared = (n < states) & (first + row + tl.zeros_like(n) < batch)
            entry = tl.load(B + b * stride_bb + n, mask=shared, other=0.0)
            exit_ = tl.load(C + b * stride_cb + n, mask=shared, other=0.0)
        entries = entries + (entry.to(tl.float32),)
        exits = exits + (exit_.to(tl.float32),)
        if z is not None:
            gates = gates + (tl.load(z + b * stride_zb + d, mask=mine, other=0.0).to(tl.float32),)
    for row in tl.static_range(ROWS):
        b = tl.cast(first + row, tl.int64)
        mine = inside & (first + row + tl.zeros_like(d) < batch)
        there = tile & (first + row + tl.zeros_like(n) < batch)
        dt = steps[row]
        if delta_bias is not None:
            dt += shift
        if SOFTPLUS:
            dt = softplus(dt)
        new = tl.exp2(dt[:, None] * rate) * held[row].to(tl.float32)
        new += (dt * values[row])[:, None] * entries[row]
        tl.store(state + b * stride_sb + place, new.to(state.dtype.element_ty), mask=there)
        out = tl.sum(new * exits[row], axis=1)
        if D is not None:
            out += values[row] * skip
        if z is not None:
            out *= silu(gates[row])
        tl.store(y + b * channels + d, out.to(y.dtype.element_ty), mask=mine)
