# mypy: ignore-errors
"""The forward's kernels: the states between chunks, then each chunk's output on its own. See chunks.py."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import LOG2E, silu
from .chunks import (
    add_chunk,
    gather,
    load_state,
    load_steps,
    load_tile,
    log_decays,
    pair_weights,
    real_tokens,
    running_sums,
    split_pairs,
    store_state,
)


@triton.jit
def states_kernel(
    x, dy, dy_b, z, delta, delta_b, A, A_b, B, C, bias, ids, lengths,
    states, first_state, last_state, first_slope, last_slope,
    x_b, x_l, x_h, z_b, z_l, z_h, delta_sb, delta_sl, delta_sh, deltab_sb, deltab_sl, deltab_sh,
    B_b, B_l, B_g, C_b, C_l, C_g,
    batch, length, heads, per_group, width, depth, chunks,
    Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, SLOPES: tl.constexpr, GATED: tl.constexpr,
    BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, SEQ: tl.constexpr, LENGTHS: tl.constexpr,
    START: tl.constexpr, END: tl.constexpr,
):  # fmt: skip
    """states (kinds, B, H, chunks, P, N): what enters every chunk; kinds: states, slopes, each by direction.

    Grid (B H, blocks of P times blocks of N, kinds). START: `first_state` (B, H, P, N) is read, with SLOPES
    `first_slope` written. END: `last_slope` is read with SLOPES, `last_state` written without.
    """
    b, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    # Offsets of heads: their strides need not be small.
    h, group = head.to(tl.int64), (head // per_group).to(tl.int64)
    blocks = tl.cdiv(width, BLOCK_P)
    p = (tl.program_id(1) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = (tl.program_id(1) // blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    kind = tl.program_id(2)
    if FORWARD and BACKWARD:
        back = kind % 2 == 1
        slope = kind >= 2
    else:
        back = kind < 0 if FORWARD else kind >= 0
        slope = kind == 1
    before = tl.where(back, 1, -1)
    limit = length
    if LENGTHS:
        limit = tl.minimum(tl.load(lengths + b).to(tl.int32), length)
    shift = 0.0
    if BIAS:
        shift = tl.load(bias + h).to(tl.float32)
    rate = tl.where(back, tl.load(A_b + h).to(tl.float32), tl.load(A + h).to(tl.float32)) * LOG2E
    if back:  # noqa: SIM108, pointers
        steps = delta_b + (b * deltab_sb + h * deltab_sh)
    else:
        steps = delta + (b * delta_sb + h * delta_sh)
    steps_l = tl.where(back, deltab_sl, delta_sl)
    size = width * depth
    row = (b * heads + h) * size
    states += ((kind * batch + b) * heads + h) * chunks * size
    if SEQ:
        ids += b * length
    state = tl.zeros((BLOCK_P, BLOCK_N), dtype=tl.float32)
    if SLOPES and slope:
        if back:
            dy = dy_b
        dy += (b * length * heads + h) * width
        z += b * z_b + h * z_h
        C += b * C_b + group * C_g
        if END:
            state += load_state(last_slope + row, p, n, width, depth).to(tl.float32)
        for i in range(chunks):
            chunk = tl.where(back, i, chunks - 1 - i)
            store_state(states + chunk * size, state, p, n, width, depth)
            state, _ = add_chunk(
                state, 0.0, chunk, dy, heads * width, z, z_l, C, C_l, steps, steps_l, rate, shift, ids,
                limit, before,
                p, n, width, depth, Q, True, GATED, SOFTPLUS, SEQ, DOT, PRECISION, True,
            )  # fmt: skip
        if START:
            store_state(first_slope + row, state, p, n, width, depth)
    else:
        x += b * x_b + h * x_h
        B += b * B_b + group * B_g
        if START:
            state += load_state(first_state + row, p, n, width, depth).to(tl.float32)
        for i in range(chunks):
            chunk = tl.where(back, chunks - 1 - i, i)
            store_state(states + chunk * size, state, p, n, width, depth)
            state, _ = add_chunk(
                state, 0.0, chunk, x, x_l, z, z_l, B, B_l, steps, steps_l, rate, shift, ids, limit, before,
                p, n, width, depth, Q, False, False, SOFTPLUS, SEQ, DOT, PRECISION, True,
            )  # fmt: skip
        if END and not SLOPES:
            store_state(last_state + row, state, p, n, width, depth)


@triton.jit
def output_kernel(
    x, z, delta, delta_b, A, A_b, B, C, D, bias, ids, lengths, states, y, y_b,
    x_b, x_l, x_h, z_b, z_l, z_h, delta_sb, delta_sl, delta_sh, deltab_sb, deltab_sl, deltab_sh,
    B_b, B_l, B_g, C_b, C_l, C_g, D_h, D_p,
    batch, length, heads, per_group, width, depth, chunks,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, TWO: tl.constexpr, FUSED: tl.constexpr,
    SPLIT: tl.constexpr, GATED: tl.constexpr,
    SKIP: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, SEQ: tl.constexpr, LENGTHS: tl.constexpr,
):  # fmt: skip
    """y of one chunk of one head; grid (B chunks H,). FUSED: entering states are summed up here, not read.
    SPLIT: y is the forward direction's alone, y_b the backward one's, each with half of a token's own term.
    """
    head, chunk = tl.program_id(0) % heads, (tl.program_id(0) // heads) % chunks
    # Offsets of heads: their strides need not be small.
    h, group = head.to(tl.int64), (head // per_group).to(tl.int64)
    b = (tl.program_id(0) // heads // chunks).to(tl.int64)
    p, n, here = tl.arange(0, P), tl.arange(0, N), tl.arange(0, Q)
    limit = length
    if LENGTHS:
        limit = tl.minimum(tl.load(lengths + b).to(tl.int32), length)
    first, rows = (chunk * Q).to(tl.int64), chunk * Q + here
    shift = 0.0
    if BIAS:
        shift = tl.load(bias + h).to(tl.float32)
    if SEQ:
        ids += b * length
    valid, real = rows < limit, real_tokens(ids, rows, limit, SEQ)
    rate_f = tl.load(A + h).to(tl.float32) * LOG2E
    rate_b = tl.load(A_b + h).to(tl.float32) * LOG2E
    delta += b * delta_sb + h * delta_sh
    delta_b += b * deltab_sb + h * deltab_sh
    x += b * x_b + h * x_h
    z += b * z_b + h * z_h
    B += b * B_b + group * B_g
    C += b * C_b + group * C_g
    size = width * depth
    states += ((b * heads + h) * chunks + chunk) * size
    if FORWARD:
        if FUSED:
            state_f = gather(
                chunk - 1, -1, chunk, x, x_l, B, B_l, delta, delta_sl, rate_f, shift, ids, limit, -1,
                p, n, width, depth, P, N, Q, SOFTPLUS, SEQ, DOT, PRECISION,
            ).to(DOT)  # fmt: skip
        else:
            state_f = load_state(states, p, n, width, depth).to(DOT)
            states += (b * 0 + batch) * heads * chunks * size
    if BACKWARD:
        if FUSED:
            state_b = gather(
                chunk + 1, 1, chunks - 1 - chunk, x, x_l, B, B_l, delta_b, deltab_sl, rate_b, shift, ids,
                limit, 1, p, n, width, depth, P, N, Q, SOFTPLUS, SEQ, DOT, PRECISION,
            ).to(DOT)  # fmt: skip
        else:
            state_b = load_state(states, p, n, width, depth).to(DOT)
    _, dt_f = load_steps(delta, delta_sl, first, here, real, shift, SOFTPLUS)
    dt_b = dt_f
    if TWO:
        _, dt_b = load_steps(delta_b, deltab_sl, first, here, real, shift, SOFTPLUS)
    upto_f = tl.cumsum(log_decays(dt_f, rate_f, ids, rows, limit, -1, SEQ), 0)
    upto_b = upto_f
    if BACKWARD:
        _, upto_b = running_sums(log_decays(dt_b, rate_b, ids, rows, limit, 1, SEQ))
    query = load_tile(C, C_l, first, here, valid, n, depth).to(DOT)
    match = load_tile(B, B_l, first, here, valid, n, depth).to(DOT)
    decay, steps = pair_weights(here, dt_f, dt_b, upto_f, upto_b, FORWARD, BACKWARD, TWO, False)
    scores = tl.dot(query, tl.trans(match), input_precision=PRECISION)
    weights_f = scores * (decay * steps)
    value = load_tile(x, x_l, first, here, valid, p, width)
    at = here[:, None] * (heads * width) + p[None, :]
    inside = (rows < length)[:, None] & (p < width)[None, :]
    out = tl.zeros((Q, P), dtype=tl.float32)
    if SPLIT:
        weights_f, weights_b = split_pairs(here, scores, weights_f, dt_f, dt_b, TWO, False)
        out += tl.dot(query, tl.trans(state_b), input_precision=PRECISION) * tl.exp2(upto_b)[:, None]
        out = tl.dot(weights_b.to(DOT), value.to(DOT), out, input_precision=PRECISION)
        y_b += ((b * length + first) * heads + h) * width
        tl.store(y_b + at, tl.where(real[:, None], out, 0.0).to(y_b.dtype.element_ty), mask=inside)
        out = tl.zeros((Q, P), dtype=tl.float32)
    if FORWARD:
        out += tl.dot(query, tl.trans(state_f), input_precision=PRECISION) * tl.exp2(upto_f)[:, None]
    if BACKWARD and not SPLIT:
        out += tl.dot(query, tl.trans(state_b), input_precision=PRECISION) * tl.exp2(upto_b)[:, None]
    out = tl.dot(weights_f.to(DOT), value.to(DOT), out, input_precision=PRECISION)
    if SKIP:
        skip = tl.load(D + h * D_h + p * D_p, mask=p < width, other=0.0).to(tl.float32)
        out += value.to(tl.float32) * skip[None, :]
    if GATED:
        out *= silu(load_tile(z, z_l, first, here, valid, p, width).to(tl.float32))
    y += ((b * length + first) * heads + h) * width
    tl.store(y + at, tl.where(real[:, None], out, 0.0).to(y.dtype.element_ty), mask=inside)
