# mypy: ignore-errors
"""The backward's second kernel: what depends on the pairs (t, s) of a chunk by s, and then the steps. See
grad_kernels.py."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import LOG2E, sigmoid
from .chunks import (
    join_pairs,
    load_grad,
    load_state,
    load_steps,
    load_tile,
    log_decays,
    own_pairs,
    pair_weights,
    real_tokens,
    running_sums,
    split_pairs,
    sums_around,
)


@triton.jit
def inner(state, slope, p, n, width, depth):
    state = load_state(state, p, n, width, depth).to(tl.float32)
    return tl.sum(tl.sum(state * slope.to(tl.float32), 1), 0)


@triton.jit
def send_kernel(
    x, dy, dy_b, z, delta, delta_b, A, A_b, B, C, D, bias, ids, lengths, states,
    dx, ddelta, ddelta_b, dB, through, scalars,
    x_b, x_l, x_h, z_b, z_l, z_h, delta_sb, delta_sl, delta_sh, deltab_sb, deltab_sl, deltab_sh,
    B_b, B_l, B_g, C_b, C_l, C_g, D_h, D_p,
    batch, length, heads, per_group, width, depth, chunks,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, TWO: tl.constexpr,
    SPLIT: tl.constexpr, PART: tl.constexpr, GATED: tl.constexpr,
    SKIP: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, SEQ: tl.constexpr, LENGTHS: tl.constexpr,
):  # fmt: skip
    """What depends on the pairs (t, s) by s, and then the steps. Grid (B chunks H,), behind `receive_kernel`.

    dx, ddelta and ddelta_b by token and head; dB (B, L, H, N), a head's share; scalars (3, B, chunks, H), for
    A, A_b and the bias, this program's shares: those of the directions run and of a bias given. SPLIT: the
    directions' outputs have a gradient each, dy and dy_b.
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
    valid, real, stored = rows < limit, real_tokens(ids, rows, limit, SEQ), rows < length
    decay_f, decay_b = tl.load(A + h).to(tl.float32), tl.load(A_b + h).to(tl.float32)
    rate_f, rate_b = decay_f * LOG2E, decay_b * LOG2E
    delta += b * delta_sb + h * delta_sh
    delta_b += b * deltab_sb + h * deltab_sh
    x += b * x_b + h * x_h
    z += b * z_b + h * z_h
    B += b * B_b + group * B_g
    C += b * C_b + group * C_g
    dy += (b * length * heads + h) * width
    dy_b += (b * length * heads + h) * width
    token = (b * length + first) * heads + h
    place = (b * chunks + chunk) * heads + h
    through += place * (4 * Q)
    kinds = (b * 0 + batch) * heads * chunks * (width * depth)
    states += ((b * heads + h) * chunks + chunk) * (width * depth)
    state_b = states + kinds if FORWARD else states
    slopes_f = state_b + kinds if BACKWARD else states + kinds
    slopes_b = state_b + 2 * kinds if FORWARD else states + kinds
    if FORWARD:
        slope_f = load_state(slopes_f, p, n, width, depth).to(DOT)
        over_f = inner(states, slope_f, p, n, width, depth)
    if BACKWARD:
        slope_b = load_state(slopes_b, p, n, width, depth).to(DOT)
        over_b = inner(state_b, slope_b, p, n, width, depth)

    raw_f, dt_f = load_steps(delta, delta_sl, first, here, real, shift, SOFTPLUS)
    raw_b, dt_b = raw_f, dt_f
    if TWO:
        raw_b, dt_b = load_steps(delta_b, deltab_sl, first, here, real, shift, SOFTPLUS)
    upto_f, leave_f, upto_b, leave_b = dt_f, dt_f, dt_f, dt_f
    if FORWARD:
        a = log_decays(dt_f, rate_f, ids, rows, limit, -1, SEQ)
        upto_f = tl.cumsum(a, 0)
        _, leave_f = sums_around(a)
        leave_f = tl.exp2(leave_f)
        over_f *= tl.exp2(tl.sum(a, 0))
    if BACKWARD:
        a = log_decays(dt_b, rate_b, ids, rows, limit, 1, SEQ)
        leave_b, upto_b = running_sums(a)
        leave_b = tl.exp2(leave_b - a)
        over_b *= tl.exp2(tl.sum(a, 0))
    grad = load_grad(dy, heads * width, z, z_l, first, here, real, p, width, GATED)
    value = load_tile(x, x_l, first, here, valid, p, width).to(DOT)
    query = load_tile(C, C_l, first, here, valid, n, depth).to(DOT)
    match = load_tile(B, B_l, first, here, valid, n, depth).to(DOT)
    decay, steps = pair_weights(here, dt_f, dt_b, upto_f, upto_b, FORWARD, BACKWARD, TWO, True)
    diagonal = here[:, None] == here[None, :]
    if SPLIT:
        weights = tl.dot(match, tl.trans(query), input_precision=PRECISION)
        dscores = tl.dot(value, tl.trans(grad.to(DOT)), input_precision=PRECISION)
        own_f = tl.sum(tl.where(diagonal, weights * dscores, 0.0), 1)
        grad_b = load_tile(dy_b, heads * width, first, here, real, p, width).to(DOT)
        other = tl.dot(value, tl.trans(grad_b), input_precision=PRECISION)
        own_b = tl.sum(tl.where(diagonal, weights * other, 0.0), 1)
        if TWO:
            own = own_pairs(here, dscores, other, dt_f, dt_b)
        dscores = join_pairs(here, dscores, other, True)
        share_f, share_b = split_pairs(here, weights, weights * (decay * steps), dt_f, dt_b, TWO, True)
        acc = tl.dot(share_b.to(DOT), grad_b, input_precision=PRECISION)
        acc = tl.dot(share_f.to(DOT), grad.to(DOT), acc, input_precision=PRECISION)
        dscores *= decay
        pairs = weights * dscores
        dscores *= steps
        if TWO:
            dscores = tl.where(diagonal, own[:, None], dscores)
        dscores = dscores.to(DOT)
    else:
        dscores = tl.dot(value, tl.trans(grad.to(DOT)), input_precision=PRECISION) * decay
        weights = tl.dot(match, tl.trans(query), input_precision=PRECISION)
        pairs = weights * dscores
        own_f = tl.sum(tl.where(diagonal, pairs, 0.0), 1)
        own_b = own_f
        dscores = (dscores * steps).to(DOT)
        acc = tl.dot((weights * (decay * steps)).to(DOT), grad.to(DOT), input_precision=PRECISION)
    if FORWARD:
        direct_f = tl.sum(tl.where(here[:, None] < here[None, :], pairs, 0.0), 1)
    if BACKWARD:
        direct_b = tl.sum(tl.where(here[:, None] > here[None, :], pairs, 0.0), 1)
    if FORWARD:
        acc += tl.dot(match, tl.trans(slope_f), input_precision=PRECISION) * (leave_f * dt_f)[:, None]
    if BACKWARD:
        acc += tl.dot(match, tl.trans(slope_b), input_precision=PRECISION) * (leave_b * dt_b)[:, None]
    if SKIP:
        skip = tl.load(D + h * D_h + p * D_p, mask=p < width, other=0.0).to(tl.float32)
        acc += load_grad(dy, heads * width, z, z_l, first, here, real, p, width, GATED) * skip[None, :]
    wide = here[:, None] * (heads * width) + p[None, :]
    inside = stored[:, None] & (p < width)[None, :]
    tl.store(dx + token * width + wide, acc.to(dx.dtype.element_ty), mask=inside)

    # Loaded again, not held, and in parts of N: registers are what is short.
    value = load_tile(x, x_l, first, here, valid, p, width).to(DOT)
    passed_f, passed_b = tl.zeros((Q,), dtype=tl.float32), tl.zeros((Q,), dtype=tl.float32)
    for i in tl.static_range(N // PART):
        m = i * PART + tl.arange(0, PART)
        query = load_tile(C, C_l, first, here, valid, m, depth).to(DOT)
        acc = tl.dot(dscores, query, input_precision=PRECISION)
        match = load_tile(B, B_l, first, here, valid, m, depth).to(DOT)
        if FORWARD:
            slope_f = load_state(slopes_f, p, m, width, depth).to(DOT)
            part = tl.dot(value, slope_f, input_precision=PRECISION) * leave_f[:, None]
            passed_f += tl.sum(part * match.to(tl.float32), 1)
            acc += part * dt_f[:, None]
        if BACKWARD:
            slope_b = load_state(slopes_b, p, m, width, depth).to(DOT)
            part = tl.dot(value, slope_b, input_precision=PRECISION) * leave_b[:, None]
            passed_b += tl.sum(part * match.to(tl.float32), 1)
            acc += part * dt_b[:, None]
        deep = here[:, None] * (heads * depth) + m[None, :]
        inside = stored[:, None] & (m < depth)[None, :]
        tl.store(dB + token * depth + deep, acc.to(dB.dtype.element_ty), mask=inside)

    # The steps. `over`: pairs that reach past the chunk on both sides.
    scalars += place
    each = (b * 0 + batch) * chunks * heads
    step_f = tl.zeros((Q,), dtype=tl.float32)
    step_b = tl.zeros((Q,), dtype=tl.float32)
    if FORWARD:
        _, rise = running_sums(tl.load(through + Q + here))
        ahead, _ = sums_around(passed_f * dt_f)
        rise += over_f + ahead + tl.load(through + here - 1, mask=here > 0, other=0.0)
        tl.store(scalars, tl.sum(rise * dt_f, 0))
        step_f = direct_f + passed_f + (0.5 * own_f if BACKWARD else own_f) + decay_f * rise
    if BACKWARD:
        rise = tl.cumsum(tl.load(through + 3 * Q + here), 0)
        _, behind = sums_around(passed_b * dt_b)
        rise += over_b + behind + tl.load(through + 2 * Q + here)
        tl.store(scalars + each, tl.sum(rise * dt_b, 0))
        step_b = direct_b + passed_b + (0.5 * own_b if FORWARD else own_b) + decay_b * rise
    if not TWO:
        step_f += step_b
    if SOFTPLUS:
        step_f *= sigmoid(raw_f)
        step_b *= sigmoid(raw_b)
    step_f = tl.where(real, step_f, 0.0)
    tl.store(ddelta + token + here * heads, step_f.to(ddelta.dtype.element_ty), mask=stored)
    raised = tl.sum(step_f, 0)
    if TWO:
        step_b = tl.where(real, step_b, 0.0)
        tl.store(ddelta_b + token + here * heads, step_b.to(ddelta_b.dtype.element_ty), mask=stored)
        raised += tl.sum(step_b, 0)
    if BIAS:
        tl.store(scalars + 2 * each, raised)
