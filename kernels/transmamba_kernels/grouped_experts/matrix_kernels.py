# mypy: ignore-errors
"""The gradients of the matrices: sums over an expert's rows, of which there are as many as chose it.

A program sums up a part of them for one tile of the matrix. Where all of an expert's rows are one part it
writes the gradient, otherwise it leaves a partial sum in float32, and a second kernel adds them in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .routing_kernels import rows_of, tile_of


@triton.jit
def sorted_kernel(
    x, dy, order, weights, rows, sent, pairs,
    D: tl.constexpr, EACH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """In the order of experts: rows (S, D) of x, sent (S, D) of dy times the pair's weight."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < pairs
    pair = tl.load(order + row, mask=there, other=0)
    weight = tl.load(weights + pair, mask=there, other=0.0).to(tl.float32)[:, None]
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        inside = there[:, None] & (d < D)[None, :]
        source = (pair // EACH).to(tl.int64)[:, None] * D + d[None, :]
        place = row.to(tl.int64)[:, None] * D + d[None, :]
        tl.store(rows + place, tl.load(x + source, mask=inside, other=0.0), mask=inside)
        given = tl.load(dy + source, mask=inside, other=0.0).to(tl.float32)
        tl.store(sent + place, (given * weight).to(sent.dtype.element_ty), mask=inside)


@triton.jit
def load_rows(pointers, inside, c, N: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr):
    """(BK, BN); what is outside is 0."""
    if N % BN == 0:
        return tl.load(pointers, mask=inside[:, None], other=0.0).to(DOT)
    return tl.load(pointers, mask=inside[:, None] & (c < N)[None, :], other=0.0).to(DOT)


@triton.jit
def matrix_grad_kernel(
    a, b, table, bounds, out, parts, experts, blocks,
    M: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (E, M, N), parts (tiles, M, N): sums over an expert's rows of a (S, M), turned, times b (S, N)."""
    columns: tl.constexpr = tl.cdiv(N, BN)
    each: tl.constexpr = tl.cdiv(M, BM) * columns
    part, within = tl.program_id(0) // each, tl.program_id(0) % each
    expert, first, last = tile_of(table, part)
    if first >= last:
        return
    m = within // columns * BM + tl.arange(0, BM)
    n = within % columns * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    row = (first + k).to(tl.int64)[:, None]
    left, right = a + row * M + m[None, :], b + row * N + n[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(first, last, BK):
        inside = start + k < last
        one = load_rows(left, inside, m, M, BM, DOT)
        two = load_rows(right, inside, n, N, BN, DOT)
        total = tl.dot(tl.trans(one), two, total, input_precision=PRECISION)
        left += BK * M
        right += BK * N
    place = m[:, None] * N + n[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    begin, end = rows_of(bounds, expert, experts, blocks)
    if (begin == first) & (end == last):
        tl.store(out + expert.to(tl.int64) * (M * N) + place, total.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(parts + part.to(tl.int64) * (M * N) + place, total, mask=inside)


@triton.jit
def add_parts_kernel(
    parts, bounds, out, experts, blocks, size, numbers, per_expert,
    EP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out (E, numbers) of the experts that have several parts of `size` rows, or none."""
    own, block = tl.program_id(0) // per_expert, tl.program_id(0) % per_expert
    e = tl.arange(0, EP)
    first, last = rows_of(bounds, e, experts, blocks)
    many = (last - first + size - 1) // size
    begin, count = tl.sum(tl.where(e < own, many, 0), 0), tl.sum(tl.where(e == own, many, 0), 0)
    if count == 1:
        return
    i = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    part = parts + begin.to(tl.int64) * numbers + i
    for _ in range(count):
        total += tl.load(part, mask=i < numbers, other=0.0)
        part += numbers
    place = out + own.to(tl.int64) * numbers + i
    tl.store(place, total.to(out.dtype.element_ty), mask=i < numbers)
