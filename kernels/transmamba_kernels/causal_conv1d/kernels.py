# mypy: ignore-errors
# ruff: noqa: RUF005
"""The Triton kernels of the causal convolution: one warp walks along time with the window in registers.

Every program has BD channels of one batch row and up to `tokens` tokens of it, in the order of processing:
token t lies at position t, or, reversed, at n - 1 - t of n real tokens (padding keeps its position). Loads of
GROUP tokens are issued together, so that their latencies overlap; each token is read once, but for the K - 1
in front of every program's first. With `weight_b` a second, anti-causal convolution shares the window:
y_b(t) sees t ... t + K - 1, so it is finished K - 1 steps late. `seq_idx` cuts the window by `linked`, which
tells of every token in it whether it follows the one before.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu


@triton.jit
def filter_columns(weight, d, inside, K: tl.constexpr, KP: tl.constexpr):
    """The K columns of a contiguous (D, K) weight, a tuple of (BD,), from one coalesced load."""
    j = tl.arange(0, KP)[None, :]
    tile = tl.load(weight + d[:, None] * K + j, mask=inside[:, None] & (j < K), other=0.0).to(tl.float32)
    columns = ()
    for tap in tl.static_range(K):
        columns = columns + (tl.sum(tl.where(j == tap, tile, 0.0), axis=1),)
    return columns


@triton.jit
def channel_vector(pointer, d, inside):
    # One return: older Triton compiles what stands behind a return too.
    value = tl.zeros_like(d).to(tl.float32)
    if pointer is not None:
        value += tl.load(pointer + d, mask=inside, other=0.0).to(tl.float32)
    return value


@triton.jit
def place_of(t, n, REVERSE: tl.constexpr):
    """Where token t lies."""
    place = t
    if REVERSE:
        place = tl.where(t < n, n - 1 - t, t)
    return tl.cast(place, tl.int64)


@triton.jit
def only(inside, condition):
    """`inside` where a scalar condition holds.

    Through integers: Triton 3.9's interpreter gives a scalar truth value that meets a vector the wrong type.
    """
    return inside & (tl.where(condition, 1, 0) + tl.zeros_like(inside).to(tl.int32) == 1)


@triton.jit
def is_real(seq_idx, t, n, REVERSE: tl.constexpr):
    """Whether there is a token t and it is no padding, whose id is negative."""
    inside = (t >= 0) & (t < n)
    return inside & (tl.load(seq_idx + place_of(t, n, REVERSE), mask=inside, other=0) >= 0)


@triton.jit
def follows(seq_idx, t, n, REVERSE: tl.constexpr):
    """1 unless a new sequence starts at token t; `seq_idx` points at the batch row."""
    real = (t > 0) & (t < n)
    here = tl.load(seq_idx + place_of(t, n, REVERSE), mask=real, other=0)
    before = tl.load(seq_idx + place_of(t - 1, n, REVERSE), mask=real, other=0)
    return (here == before).to(tl.int32)


@triton.jit
def early(
    x, initial, d, inside, t, n, stride_xl, stride_id, stride_ik, K: tl.constexpr, REVERSE: tl.constexpr
):
    """Token t in front of a program's first: of x, of the initial state, or zero."""
    row = x + place_of(t, n, REVERSE) * stride_xl + d
    value = tl.load(row, mask=only(inside, (t >= 0) & (t < n)), other=0.0).to(tl.float32)
    if initial is not None:
        column = initial + tl.cast(d, tl.int64) * stride_id + (K - 1 + t) * stride_ik
        value += tl.load(column, mask=only(inside, t < 0), other=0.0).to(tl.float32)
    return value


@triton.jit
def causal(window, taps, linked, bias, OFFSET: tl.constexpr, K: tl.constexpr, SEQ: tl.constexpr):
    """The convolution at the newest token of the window."""
    total = bias + window[K - 1] * taps[K - 1]
    joined = 1
    for s in tl.static_range(1, K):
        value = window[K - 1 - s]
        if SEQ:
            joined = joined * linked[OFFSET + K - s]
            value = tl.where(joined != 0, value, 0.0)
        total += value * taps[K - 1 - s]
    return total


@triton.jit
def anticausal(window, taps, linked, bias, OFFSET: tl.constexpr, K: tl.constexpr, SEQ: tl.constexpr):
    """The reversed convolution at the oldest token of the window."""
    total = bias + window[0] * taps[K - 1]
    joined = 1
    for s in tl.static_range(1, K):
        value = window[s]
        if SEQ:
            joined = joined * linked[OFFSET + s]
            value = tl.where(joined != 0, value, 0.0)
        total += value * taps[K - 1 - s]
    return total


@triton.jit
def forward_kernel(
    x,
    weight,
    bias,
    weight_b,
    bias_b,
    initial,
    seq_idx,
    lengths,
    y,
    y_b,
    final,
    length,
    channels,
    blocks,
    chunks,
    tokens,
    groups,
    stride_xb,
    stride_xl,
    stride_ib,
    stride_id,
    stride_ik,
    K: tl.constexpr,
    KP: tl.constexpr,
    BD: tl.constexpr,
    GROUP: tl.constexpr,
    SILU: tl.constexpr,
    REVERSE: tl.constexpr,
):
    SEQ: tl.constexpr = seq_idx is not None
    pid = tl.program_id(0)
    d = (pid % blocks) * BD + tl.arange(0, BD)
    inside = d < channels
    chunk = pid // blocks % chunks
    batch = tl.cast(pid // blocks // chunks, tl.int64)
    start = chunk * tokens
    n = length
    if lengths is not None:
        n = tl.minimum(tl.cast(tl.load(lengths + batch), tl.int32), length)
    if final is not None:
        # The last program writes the final state: the window in front of token n.
        start = tl.where(chunk == chunks - 1, n, start)
        groups = tl.where(chunk == chunks - 1, 0, groups)
    end = tl.minimum(start + tokens, length)
    seen = end  # behind the last token that is read
    if weight_b is not None:
        seen = end + K - 1

    x += batch * stride_xb
    y += batch * length * channels
    if weight_b is not None:
        y_b += batch * length * channels
        taps_b, offset_b = filter_columns(weight_b, d, inside, K, KP), channel_vector(bias_b, d, inside)
    if initial is not None:
        initial += batch * stride_ib
    if SEQ:
        seq_idx += batch * length
    taps, offset = filter_columns(weight, d, inside, K, KP), channel_vector(bias, d, inside)

    window = ()
    linked = ()
    for j in tl.static_range(K - 1):
        t = start - (K - 1) + j
        window = window + (early(x, initial, d, inside, t, n, stride_xl, stride_id, stride_ik, K, REVERSE),)
        if SEQ:
            linked = linked + (follows(seq_idx, t, n, REVERSE),)
    if final is not None:
        final += (batch * channels + d) * (K - 1)
        joined = 1
        for s in tl.static_range(1, K):
            if SEQ and s > 1:
                joined = joined * linked[K - s]
            value = tl.where(joined != 0, window[K - 1 - s], 0.0)
            tl.store(
                final + K - 1 - s, value.to(final.dtype.element_ty), mask=only(inside, chunk == chunks - 1)
            )

    for group in range(groups):
        rows = ()
        for i in tl.static_range(GROUP):
            t = start + group * GROUP + i
            rows = rows + (
                tl.load(
                    x + place_of(t, n, REVERSE) * stride_xl + d,
                    mask=only(inside, t < tl.minimum(n, seen)),
                    other=0.0,
                ),
            )
        for i in tl.static_range(GROUP):
            t = start + group * GROUP + i
            window = window + (rows[i].to(tl.float32),)
            if SEQ:
                linked = linked + (follows(seq_idx, t, n, REVERSE),)
            total = causal(window, taps, linked, offset, 0, K, SEQ)
            if SILU:
                total = silu(total)
            if lengths is not None:
                total = tl.where(t < n, total, 0.0)
            if SEQ:
                total = tl.where(is_real(seq_idx, t, n, REVERSE), total, 0.0)
            row = y + place_of(t, n, REVERSE) * channels + d
            tl.store(row, total.to(y.dtype.element_ty), mask=only(inside, t < end))
            if weight_b is not None:
                late = t - (K - 1)
                total = anticausal(window, taps_b, linked, offset_b, 0, K, SEQ)
                if SILU:
                    total = silu(total)
                if lengths is not None:
                    total = tl.where(late < n, total, 0.0)
                if SEQ:
                    total = tl.where(is_real(seq_idx, late, n, REVERSE), total, 0.0)
                row = y_b + tl.cast(late, tl.int64) * channels + d
                written = only(inside, (late >= start) & (late < end))
                tl.store(row, total.to(y_b.dtype.element_ty), mask=written)
            window = window[1:]
            if SEQ:
                linked = linked[1:]


@triton.jit
def updated(value, state, weight, bias, d, inside, stride_sd, stride_sk, K: tl.constexpr, S: tl.constexpr):
    """The convolution of channels d at one token's `value`, float32, all of one shape; the batch row's state
    (D, S) is moved on. weight: (D, K), contiguous.

    Where a program has more threads than channels several of them read a channel and one writes it: all have
    read before any writes.
    """
    state += tl.cast(d, tl.int64) * stride_sd
    window = ()
    for j in tl.static_range(S):
        window = window + (tl.load(state + j * stride_sk, mask=inside, other=0.0).to(tl.float32),)
    window = window + (value,)
    total = channel_vector(bias, d, inside)
    for j in tl.static_range(K):
        tap = tl.load(weight + d * K + j, mask=inside, other=0.0).to(tl.float32)
        total += window[S - K + 1 + j] * tap
    tl.debug_barrier()
    for j in tl.static_range(S):
        tl.store(state + j * stride_sk, window[j + 1].to(state.dtype.element_ty), mask=inside)
    return total


@triton.jit
def update_kernel(
    x,
    state,
    weight,
    bias,
    y,
    channels,
    stride_xb,
    stride_sb,
    stride_sd,
    stride_sk,
    K: tl.constexpr,
    S: tl.constexpr,
    BD: tl.constexpr,
    SILU: tl.constexpr,
):
    """One token: y (B, D), and the state (B, D, S) moved on in place.

    Grid (B blocks of D,): a second axis would end at 65535.
    """
    blocks = tl.cdiv(channels, BD)
    batch = tl.cast(tl.program_id(0) // blocks, tl.int64)
    d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    inside = d < channels
    value = tl.load(x + batch * stride_xb + d, mask=inside, other=0.0).to(tl.float32)
    total = updated(value, state + batch * stride_sb, weight, bias, d, inside, stride_sd, stride_sk, K, S)
    if SILU:
        total = silu(total)
    tl.store(y + batch * channels + d, total.to(y.dtype.element_ty), mask=inside)
