# mypy: ignore-errors
"""The backward's first kernel: what depends on the pairs (t, s) of a chunk by t. See chunks.py for the terms.

The gradient of a step's log decay is the sum of M[t, s] = dW[t, s] W[t, s] over all pairs of tokens that the
step lies between, and over no others: row sums less column sums, summed up to the step, are the same number,
but leave the rounding of all pairs behind a step that forgets everything, where A's gradient multiplies it by
that step. Pairs inside the chunk: running sums along one axis of M, of which those on the step's side are
added. Pairs with one token or both outside: by the states. No sum runs further than a chunk. Two kernels,
since one has too few registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import LOG2E, silu_slope
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
)


@triton.jit
def receive_kernel(
    x, dy, dy_b, z, delta, delta_b, A, A_b, B, C, D, bias, ids, lengths, states, dz, dC, dD, through,
    x_b, x_l, x_h, z_b, z_l, z_h, delta_sb, delta_sl, delta_sh, deltab_sb, deltab_sl, deltab_sh,
    B_b, B_l, B_g, C_b, C_l, C_g, D_h, D_p,
    batch, length, heads, per_group, width, depth, chunks,
    Q: tl.constexpr, P: tl.constexpr, N: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, TWO: tl.constexpr,
    SPLIT: tl.constexpr, PART: tl.constexpr, GATED: tl.constexpr,
    SKIP: tl.constexpr, BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, SEQ: tl.constexpr, LENGTHS: tl.constexpr,
):  # fmt: skip
    """What depends on the pairs (t, s) by t. Grid (B chunks H,).

    dC (B, L, H, N), a head's share; dz (B, L, H, P); dD (B, chunks, H, P), this program's share; `through`
    (B, chunks, H, 2, 2, Q): by direction, what passes over a step between tokens of the chunk, of the forward
    direction over the step behind t; and what t receives of the state. SPLIT: the directions' outputs have a
    gradient each, dy and dy_b.
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

    _, dt_f = load_steps(delta, delta_sl, first, here, real, shift, SOFTPLUS)
    dt_b = dt_f
    if TWO:
        _, dt_b = load_steps(delta_b, deltab_sl, first, here, real, shift, SOFTPLUS)
    upto_f, upto_b = dt_f, dt_f
    if FORWARD:
        upto_f = tl.cumsum(log_decays(dt_f, rate_f, ids, rows, limit, -1, SEQ), 0)
    if BACKWARD:
        _, upto_b = running_sums(log_decays(dt_b, rate_b, ids, rows, limit, 1, SEQ))
    grad = load_grad(dy, heads * width, z, z_l, first, here, real, p, width, GATED)
    value = load_tile(x, x_l, first, here, valid, p, width)
    if SKIP:
        skip = tl.load(D + h * D_h + p * D_p, mask=p < width, other=0.0).to(tl.float32)
        tl.store(dD + place * width + p, tl.sum(grad * value.to(tl.float32), 0), mask=p < width)
    grad, value = grad.to(DOT), value.to(DOT)
    query = load_tile(C, C_l, first, here, valid, n, depth).to(DOT)
    match = load_tile(B, B_l, first, here, valid, n, depth).to(DOT)
    decay, steps = pair_weights(here, dt_f, dt_b, upto_f, upto_b, FORWARD, BACKWARD, TWO, False)
    decay *= steps
    scores = tl.dot(query, tl.trans(match), input_precision=PRECISION)
    dscores = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
    if SPLIT:
        grad_b = load_tile(dy_b, heads * width, first, here, real, p, width).to(DOT)
        other = tl.dot(grad_b, tl.trans(value), input_precision=PRECISION)
        if TWO:
            own = own_pairs(here, dscores, other, dt_f, dt_b)
        dscores = join_pairs(here, dscores, other, False)
    dscores *= decay
    if SPLIT and TWO:
        dscores = tl.where(here[:, None] == here[None, :], own[:, None], dscores)
    pairs = scores * dscores
    if FORWARD:  # [t, s]: from all tokens up to s
        passing = tl.where(here[:, None] > here[None, :], tl.cumsum(pairs, 1), 0.0)
        tl.store(through + here, tl.sum(passing, 0))
    if BACKWARD:  # [t, s]: to all tokens up to t
        passing = tl.where(here[:, None] < here[None, :], tl.cumsum(pairs, 0), 0.0)
        tl.store(through + 2 * Q + here, tl.sum(passing, 1))
    dscores = dscores.to(DOT)

    # The output is made again for dz.
    if GATED:
        wide = here[:, None] * (heads * width) + p[None, :]
        inside = stored[:, None] & (p < width)[None, :]
        acc = tl.dot((scores * decay).to(DOT), value, input_precision=PRECISION)
        if FORWARD:
            state = load_state(states, p, n, width, depth).to(DOT)
            acc += tl.dot(query, tl.trans(state), input_precision=PRECISION) * tl.exp2(upto_f)[:, None]
        if BACKWARD:
            state = load_state(state_b, p, n, width, depth).to(DOT)
            acc += tl.dot(query, tl.trans(state), input_precision=PRECISION) * tl.exp2(upto_b)[:, None]
        if SKIP:
            acc += load_tile(x, x_l, first, here, valid, p, width).to(tl.float32) * skip[None, :]
        acc *= load_tile(dy, heads * width, first, here, real, p, width).to(tl.float32)
        acc *= silu_slope(load_tile(z, z_l, first, here, valid, p, width).to(tl.float32))
        tl.store(dz + token * width + wide, acc.to(dz.dtype.element_ty), mask=inside)

    # Loaded again, not held, and in parts of N: registers are what is short.
    if GATED:
        grad = load_grad(dy, heads * width, z, z_l, first, here, real, p, width, GATED).to(DOT)
    received_f, received_b = tl.zeros((Q,), dtype=tl.float32), tl.zeros((Q,), dtype=tl.float32)
    for i in tl.static_range(N // PART):
        m = i * PART + tl.arange(0, PART)
        match = load_tile(B, B_l, first, here, valid, m, depth).to(DOT)
        acc = tl.dot(dscores, match, input_precision=PRECISION)
        query = load_tile(C, C_l, first, here, valid, m, depth).to(tl.float32)
        if FORWARD:
            state = load_state(states, p, m, width, depth).to(DOT)
            part = tl.dot(grad, state, input_precision=PRECISION) * tl.exp2(upto_f)[:, None]
            received_f += tl.sum(part * query, 1)
            acc += part
        if BACKWARD:
            state = load_state(state_b, p, m, width, depth).to(DOT)
            part = (
                tl.dot(grad_b if SPLIT else grad, state, input_precision=PRECISION) * tl.exp2(upto_b)[:, None]
            )
            received_b += tl.sum(part * query, 1)
            acc += part
        deep = here[:, None] * (heads * depth) + m[None, :]
        inside = stored[:, None] & (m < depth)[None, :]
        tl.store(dC + token * depth + deep, acc.to(dC.dtype.element_ty), mask=inside)
    if FORWARD:
        tl.store(through + Q + here, received_f)
    if BACKWARD:
        tl.store(through + 3 * Q + here, received_b)
