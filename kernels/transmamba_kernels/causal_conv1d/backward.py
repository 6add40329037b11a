# mypy: ignore-errors
# ruff: noqa: RUF005
"""The Triton kernel of the convolution's backward; see kernels.py for how programs walk."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu_slope
from .kernels import (
    anticausal,
    causal,
    channel_vector,
    early,
    filter_columns,
    follows,
    is_real,
    only,
    place_of,
)


@triton.jit
def _joined(linked, BEGIN: tl.constexpr, END: tl.constexpr):
    """Whether no sequence starts at the tokens of linked[BEGIN:END]."""
    product = 1
    for i in tl.static_range(BEGIN, END):
        product = product * linked[i]
    return product != 0


@triton.jit
def backward_kernel(
    x,
    weight,
    bias,
    weight_b,
    bias_b,
    initial,
    seq_idx,
    lengths,
    dy,
    dy_b,
    dfinal,
    dx,
    dinitial,
    partials,
    length,
    channels,
    blocks,
    chunks,
    tokens,
    groups,
    stride_xb,
    stride_xl,
    stride_yb,
    stride_yl,
    stride_zb,
    stride_zl,
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
    """dx of tokens [start, end): K - 1 steps late, when the gradients of all outputs that saw it are known.

    partials: (batch chunks, K + 1 or 2 K + 2, D) float32, dweight and dbias of each direction.
    """
    SEQ: tl.constexpr = seq_idx is not None
    BOTH: tl.constexpr = weight_b is not None
    pid = tl.program_id(0)
    d = (pid % blocks) * BD + tl.arange(0, BD)
    inside = d < channels
    chunk = pid // blocks % chunks
    batch = tl.cast(pid // blocks // chunks, tl.int64)
    start = chunk * tokens
    end = tl.minimum(start + tokens, length)
    n = length
    if lengths is not None:
        n = tl.minimum(tl.cast(tl.load(lengths + batch), tl.int32), length)
    x += batch * stride_xb
    dy += batch * stride_yb
    dx += batch * length * channels
    if initial is not None:
        initial += batch * stride_ib
    if dinitial is not None:
        dinitial += (batch * channels + d) * (K - 1)
    if dfinal is not None:
        dfinal += (batch * channels + d) * (K - 1)
    if SEQ:
        seq_idx += batch * length
    taps, offset = filter_columns(weight, d, inside, K, KP), channel_vector(bias, d, inside)

    # All tuples end with token t. The window and the gradients of y have K tokens, those of y_b, whose newest
    # is K - 1 late, reach back to t - 2 (K - 1), and so does `linked`.
    zero = tl.zeros([BD], tl.float32)
    window = ()
    linked = ()
    grads = ()
    sums = (zero,)
    for j in tl.static_range(K - 1):
        t = start - (K - 1) + j
        window = window + (early(x, initial, d, inside, t, n, stride_xl, stride_id, stride_ik, K, REVERSE),)
        grads = grads + (zero,)
        sums = sums + (zero,)
    if SEQ:
        for j in tl.static_range(2 * K - 2):
            linked = linked + (follows(seq_idx, start - (2 * K - 2) + j, n, REVERSE),)
    total_sum = zero
    if BOTH:
        dy_b += batch * stride_zb
        taps_b, offset_b = filter_columns(weight_b, d, inside, K, KP), channel_vector(bias_b, d, inside)
        grads_b = grads
        sums_b = sums
        total_sum_b = zero

    for group in range(groups):
        rows = ()
        rows_y = ()
        rows_z = ()
        for i in tl.static_range(GROUP):
            t = start + group * GROUP + i
            place = place_of(t, n, REVERSE)
            needed = only(inside, t < tl.minimum(n, end + K - 1))
            rows = rows + (tl.load(x + place * stride_xl + d, mask=needed, other=0.0),)
            rows_y = rows_y + (tl.load(dy + place * stride_yl + d, mask=needed, other=0.0),)
            if BOTH:
                late = t - (K - 1)
                needed = only(inside, (late >= 0) & (late < tl.minimum(n, end)))
                row = dy_b + tl.cast(late, tl.int64) * stride_zl + d
                rows_z = rows_z + (tl.load(row, mask=needed, other=0.0),)
        for i in tl.static_range(GROUP):
            t = start + group * GROUP + i
            late = t - (K - 1)
            window = window + (rows[i].to(tl.float32),)
            grad = rows_y[i].to(tl.float32)
            if SEQ:
                linked = linked + (follows(seq_idx, t, n, REVERSE),)
            if SILU:
                grad *= silu_slope(causal(window, taps, linked, offset, K - 1, K, SEQ))
            if SEQ:
                real = is_real(seq_idx, t, n, REVERSE)
                grad = tl.where(real, grad, 0.0)
            grads = grads + (grad,)
            own = tl.where(t < end, grad, 0.0)
            total_sum += own
            found = ()
            for j in tl.static_range(K):
                value = window[j]
                if SEQ:
                    value = tl.where(_joined(linked, K + j, 2 * K - 1) & real, value, 0.0)
                found = found + (sums[j] + own * value,)
            sums = found
            # The gradient of token `late`: from y(late + s) and from y_b(late - s).
            result = grads[0] * taps[K - 1]
            for s in tl.static_range(1, K):
                value = grads[s]
                if SEQ:
                    value = tl.where(_joined(linked, K, K + s), value, 0.0)
                result += value * taps[K - 1 - s]
            if BOTH:
                grad = rows_z[i].to(tl.float32)
                if SILU:
                    grad *= silu_slope(anticausal(window, taps_b, linked, offset_b, K - 1, K, SEQ))
                if SEQ:
                    real = is_real(seq_idx, late, n, REVERSE)
                    grad = tl.where(real, grad, 0.0)
                grads_b = grads_b + (grad,)
                own = tl.where(late >= start, grad, 0.0)
                total_sum_b += own
                found = ()
                for j in tl.static_range(K):
                    value = window[K - 1 - j]
                    if SEQ:
                        value = tl.where(_joined(linked, K, 2 * K - 1 - j) & real, value, 0.0)
                    found = found + (sums_b[j] + own * value,)
                sums_b = found
                for s in tl.static_range(K):
                    value = grads_b[K - 1 - s]
                    if SEQ:
                        value = tl.where(_joined(linked, K - s, K), value, 0.0)
                    result += value * taps_b[K - 1 - s]
                grads_b = grads_b[1:]
            if dfinal is not None:
                column = late - n + K - 1
                last = only(inside, (column >= 0) & (late < n))
                value = tl.load(dfinal + column, mask=last, other=0.0).to(tl.float32)
                if SEQ:
                    value = tl.where(_joined(linked, K, 2 * K - 1), value, 0.0)
                result += value
            if dinitial is not None:
                before = only(inside, (chunk == 0) & (late < 0))
                tl.store(dinitial + K - 1 + late, result.to(dinitial.dtype.element_ty), mask=before)
            if lengths is not None:
                result = tl.where(late < n, result, 0.0)
            written = only(inside, (late >= start) & (late < end))
            row = dx + place_of(late, n, REVERSE) * channels + d
            tl.store(row, result.to(dx.dtype.element_ty), mask=written)
            window = window[1:]
            grads = grads[1:]
            if SEQ:
                linked = linked[1:]

    SLOTS: tl.constexpr = (K + 1) * (2 if BOTH else 1)
    partials += (batch * chunks + chunk) * SLOTS * channels + d
    for j in tl.static_range(K):
        tl.store(partials + j * channels, sums[j], mask=inside)
    tl.store(partials + K * channels, total_sum, mask=inside)
    if BOTH:
        for j in tl.static_range(K):
            tl.store(partials + (K + 1 + j) * channels, sums_b[j], mask=inside)
        tl.store(partials + (2 * K + 1) * channels, total_sum_b, mask=inside)
