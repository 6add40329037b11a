# mypy: ignore-errors
"""What the SSD kernels share: sums of log decays in a chunk, tiles of tokens, states.

In a chunk of Q tokens and a direction, `a_t` is the log2 of the decay at token t and `E_t` the sum of a from
the edge where the scan enters the chunk up to t, t included; `T` is the sum over the chunk. Then a token s
before t in scan order is left at t with 2^(E_t - E_s), at the far edge with 2^(T - E_s); the state that
enters, at t with 2^E_t. All sums start at a chunk's edge, so that long sequences lose no digits, and all
exponents are <= 0.

States are (P, N). A direction's state enters its chunks ("state": what the tokens before a chunk left); the
gradient's state runs against it ("slope": how the outputs behind a chunk depend on the state that leaves it).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu, softplus

# A step's decay below 2^-128 is as good as none; the floor keeps sums of log decays short and so exact.
FLOOR = tl.constexpr(-128.0)
# 2^-160 is 0 in float32: the state is empty behind it.
EMPTY = tl.constexpr(-160.0)


@triton.jit
def real_tokens(ids, rows, limit, SEQ: tl.constexpr):
    """Which rows are no padding: in front of `limit`, and their id not negative."""
    valid = rows < limit
    if SEQ:
        valid = valid & (tl.load(ids + rows, mask=valid, other=0) >= 0)
    return valid


@triton.jit
def load_steps(delta, stride, first, here, valid, bias, SOFTPLUS: tl.constexpr):
    """delta + bias, and the step sizes, 0 where not valid."""
    raw = tl.load(delta + first * stride + here * stride, mask=valid, other=0.0).to(tl.float32) + bias
    dt = raw
    if SOFTPLUS:
        dt = softplus(raw)
    return raw, tl.where(valid, dt, 0.0)


@triton.jit
def log_decays(dt, rate, ids, rows, limit, before, SEQ: tl.constexpr):
    """a, by token; `rate` is A log2 e, `before` is -1 where the scan comes from the left, else 1."""
    a = tl.maximum(dt * rate, FLOOR)
    if SEQ:
        inside = (rows < limit) & (rows + before >= 0) & (rows + before < limit)
        here = tl.load(ids + rows, mask=inside, other=0)
        there = tl.load(ids + rows + before, mask=inside, other=0)
        # Padding empties no state on the way through it.
        a = tl.where((here != there) & (here >= 0), EMPTY, a)
    return a


@triton.jit
def load_tile(x, stride, first, here, valid, columns, width):
    """(rows, columns); zeros outside."""
    at = here[:, None] * stride + columns[None, :]
    return tl.load(x + first * stride + at, mask=valid[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def load_grad(dy, stride, z, z_stride, first, here, valid, p, width, GATED: tl.constexpr):
    """The gradient of what the gate multiplies."""
    grad = load_tile(dy, stride, first, here, valid, p, width).to(tl.float32)
    if GATED:
        grad *= silu(load_tile(z, z_stride, first, here, valid, p, width).to(tl.float32))
    return grad


@triton.jit
def load_state(states, rows, columns, width, depth):
    """(P, N) of a contiguous (P, N)."""
    at = rows[:, None] * depth + columns[None, :]
    return tl.load(states + at, mask=(rows < width)[:, None] & (columns < depth)[None, :], other=0.0)


@triton.jit
def store_state(states, value, rows, columns, width, depth):
    at = rows[:, None] * depth + columns[None, :]
    tl.store(
        states + at,
        value.to(states.dtype.element_ty),
        mask=(rows < width)[:, None] & (columns < depth)[None, :],
    )


@triton.jit
def running_sums(a):
    """Of each element and those before it; of each and those behind it. The second is the total less the
    first, in float64: in float32 a small sum would drown in a large total."""
    upto = tl.cumsum(a.to(tl.float64), 0)
    behind = tl.sum(a.to(tl.float64), 0) - upto + a
    return upto.to(tl.float32), behind.to(tl.float32)


@triton.jit
def sums_around(a):
    """Of the elements in front of each; of those behind it. In float64, as `running_sums`."""
    wide = a.to(tl.float64)
    upto = tl.cumsum(wide, 0)
    return (upto - wide).to(tl.float32), (tl.sum(wide, 0) - upto).to(tl.float32)


@triton.jit
def add_chunk(
    state, fade, chunk, x, x_stride, z, z_stride, B, B_stride, delta, delta_stride, rate, bias, ids, limit,
    before,
    p, n, width, depth,
    Q: tl.constexpr, SLOPE: tl.constexpr, GATED: tl.constexpr, SOFTPLUS: tl.constexpr, SEQ: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """The state with one chunk more, and the log decay T over it.

    PASS: the chunk follows in scan order, and fades the state. Else it lies farther off than what the state
    holds already, and `fade` is the log decay on the way. SLOPE: x is the outputs' gradient, B is C.
    """
    # From the edge on which the state stands: the sums of log decays start there.
    here = tl.arange(0, Q)
    if SLOPE:  # noqa: SIM108
        here = tl.where(before > 0, Q - 1 - here, here)
    else:
        here = tl.where(before > 0, here, Q - 1 - here)
    first, rows = (chunk * Q).to(tl.int64), chunk * Q + here
    valid, real = rows < limit, real_tokens(ids, rows, limit, SEQ)
    value = load_tile(x, x_stride, first, here, real, p, width).to(tl.float32)
    match = load_tile(B, B_stride, first, here, valid, n, depth).to(DOT)
    if GATED:
        value *= silu(load_tile(z, z_stride, first, here, valid, p, width).to(tl.float32))
    _, dt = load_steps(delta, delta_stride, first, here, real, bias, SOFTPLUS)
    a = log_decays(dt, rate, ids, rows, limit, before, SEQ)
    upto, total = tl.cumsum(a, 0), tl.sum(a, 0)
    if SLOPE:  # noqa: SIM108
        weight = tl.exp2(fade + upto)
    else:
        weight = tl.exp2(fade + (upto - a)) * dt
    value = tl.trans((value * weight[:, None]).to(DOT))
    if PASS:
        state *= tl.exp2(total)
    return tl.dot(value, match, state, input_precision=PRECISION), total


@triton.jit
def gather(
    chunk, step, count, x, x_stride, B, B_stride, delta, delta_stride, rate, bias, ids, limit, before,
    p, n, width, depth, P: tl.constexpr, N: tl.constexpr,
    Q: tl.constexpr, SOFTPLUS: tl.constexpr, SEQ: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state that `count` chunks leave, from `chunk`, the nearest, on in steps of `step`."""
    state = tl.zeros((P, N), dtype=tl.float32)
    fade = 0.0
    for i in range(count):
        state, total = add_chunk(
            state, fade, chunk + i * step, x, x_stride, x, x_stride, B, B_stride, delta, delta_stride, rate,
            bias, ids, limit, before, p, n, width, depth, Q, False, False, SOFTPLUS, SEQ, DOT, PRECISION,
            False,
        )  # fmt: skip
        fade += total
    return state


@triton.jit
def pair_weights(
    here, dt_f, dt_b, upto_f, upto_b,
    FORWARD: tl.constexpr, BACKWARD: tl.constexpr, TWO: tl.constexpr, SENDERS: tl.constexpr,
):  # fmt: skip
    """Decays between the tokens of a chunk, (t, s), and the step sizes that go with s; SENDERS: (s, t)."""
    if SENDERS:
        ahead, behind = here[:, None] < here[None, :], here[:, None] > here[None, :]
        sums_f, sums_b = upto_f[None, :] - upto_f[:, None], upto_b[None, :] - upto_b[:, None]
        dt_f, dt_b = dt_f[:, None], dt_b[:, None]
    else:
        ahead, behind = here[:, None] > here[None, :], here[:, None] < here[None, :]
        sums_f, sums_b = upto_f[:, None] - upto_f[None, :], upto_b[:, None] - upto_b[None, :]
        dt_f, dt_b = dt_f[None, :], dt_b[None, :]
    if FORWARD and BACKWARD:
        sums = tl.where(ahead, sums_f, tl.where(behind, sums_b, 0.0))
    elif FORWARD:
        sums = tl.where(behind, float("-inf"), sums_f)
    else:
        sums = tl.where(ahead, float("-inf"), sums_b)
    if TWO:
        steps = tl.where(ahead, dt_f, tl.where(behind, dt_b, 0.5 * (dt_f + dt_b)))
    elif FORWARD:
        steps = dt_f
    else:
        steps = dt_b
    return tl.exp2(sums), steps


@triton.jit
def split_pairs(here, scores, weights, dt_f, dt_b, TWO: tl.constexpr, SENDERS: tl.constexpr):
    """`weights` = scores * decay * steps of both directions, (t, s), by direction: of a token's own term each
    has a half. SENDERS: (s, t)."""
    if SENDERS:
        ahead, behind = here[:, None] < here[None, :], here[:, None] > here[None, :]
        dt_f, dt_b = dt_f[:, None], dt_b[:, None]
    else:
        ahead, behind = here[:, None] > here[None, :], here[:, None] < here[None, :]
        dt_f, dt_b = dt_f[None, :], dt_b[None, :]
    if TWO:
        forward = tl.where(ahead, weights, tl.where(behind, 0.0, 0.5 * scores * dt_f))
        backward = tl.where(behind, weights, tl.where(ahead, 0.0, 0.5 * scores * dt_b))
    else:
        forward = tl.where(ahead, weights, tl.where(behind, 0.0, 0.5 * weights))
        backward = weights - forward  # exact: all, nothing or half of it
    return forward, backward


@triton.jit
def join_pairs(here, forward, backward, SENDERS: tl.constexpr):
    """Gradients of the pairs' weights before decay and step size, (t, s), out of both directions'; a token's
    own is their mean, right where both have one step size. SENDERS: (s, t)."""
    if SENDERS:
        ahead, behind = here[:, None] < here[None, :], here[:, None] > here[None, :]
    else:
        ahead, behind = here[:, None] > here[None, :], here[:, None] < here[None, :]
    return tl.where(ahead, forward, tl.where(behind, backward, 0.5 * (forward + backward)))


@triton.jit
def own_pairs(here, forward, backward, dt_f, dt_b):
    """The diagonal of `join_pairs` times decay and steps where the step sizes are two, (Q,)."""
    diagonal = here[:, None] == here[None, :]
    own_f = tl.sum(tl.where(diagonal, forward, 0.0), 1)
    own_b = tl.sum(tl.where(diagonal, backward, 0.0), 1)
    return 0.5 * (dt_f * own_f + dt_b * own_b)
