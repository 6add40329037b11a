# mypy: ignore-errors
"""The products of which every row is a pair's: up, down, and the gradients of what they read.

One program makes BM rows of one expert and BN columns. Rows behind the tile's last read that one once more
and write nothing. Programs that are neighbours share a block of a matrix, GROUP tiles of rows at a time, so
that an expert's matrices and these rows stay in L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu, silu_slope
from .routing_kernels import tile_of


@triton.jit
def place_of(tiles, blocks: tl.constexpr, GROUP: tl.constexpr):
    """The tile and the block of columns of this program."""
    program = tl.program_id(0)
    begin = program // (GROUP * blocks) * GROUP
    many = tl.minimum(tiles - begin, GROUP)
    within = program % (GROUP * blocks)
    return begin + within % many, within // many


@triton.jit
def load_left(a, start, K: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr):
    """(BM, BK) from the columns `start` on; a: pointers of the first."""
    if K % BK == 0:
        return tl.load(a).to(DOT)
    k = start + tl.arange(0, BK)
    return tl.load(a, mask=(k < K)[None, :], other=0.0).to(DOT)


@triton.jit
def load_right(
    b, start, n, K: tl.constexpr, N: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, DOT: tl.constexpr
):
    """(BK, BN) from the rows `start` on; columns behind N are 0."""
    k = start + tl.arange(0, BK)
    if K % BK == 0 and N % BN == 0:
        return tl.load(b).to(DOT)
    if K % BK == 0:
        return tl.load(b, mask=(n < N)[None, :], other=0.0).to(DOT)
    if N % BN == 0:
        return tl.load(b, mask=(k < K)[:, None], other=0.0).to(DOT)
    return tl.load(b, mask=(k < K)[:, None] & (n < N)[None, :], other=0.0).to(DOT)


@triton.jit
def product(
    a, b, n, K: tl.constexpr, N: tl.constexpr, TURNED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(BM, BN) in float32. a: (BM,) pointers of rows. b: of a matrix (K, N), TURNED (N, K)."""
    k = tl.arange(0, BK)
    left = a[:, None] + k[None, :]
    right = b + (n[None, :] * K + k[:, None] if TURNED else n[None, :] + k[:, None] * N)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        one = load_left(left, start, K, BK, DOT)
        two = load_right(right, start, n, K, N, BK, BN, DOT)
        total = tl.dot(one, two, total, input_precision=PRECISION)
        left += BK
        right += BK if TURNED else BK * N
    return total


@triton.jit
def activated(x, SILU: tl.constexpr):
    if SILU:
        return silu(x)
    # what is not a number stays so, which a maximum would hide
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def slope_of(x, SILU: tl.constexpr):
    if SILU:
        return silu_slope(x)
    return tl.where(x > 0.0, 1.0, 0.0)


@triton.jit
def up_kernel(
    x, up, order, table, hidden, before, tiles,
    D: tl.constexpr, F: tl.constexpr, EACH: tl.constexpr, GATED: tl.constexpr, SILU: tl.constexpr,
    KEEP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """hidden (S, F); KEEP: before (S, F) or gated (S, 2 F), what the activation read."""
    tile, block = place_of(tiles, tl.cdiv(F, BN), GROUP)
    expert, first, last = tile_of(table, tile)
    if first >= last:
        return
    row = first + tl.arange(0, BM)
    token = tl.load(order + tl.minimum(row, last - 1)) // EACH
    n = block * BN + tl.arange(0, BN)
    a = x + token.to(tl.int64) * D
    WIDE: tl.constexpr = 2 * F if GATED else F
    matrix = up + expert.to(tl.int64) * (WIDE * D)
    inside = (row < last)[:, None] & (n < F)[None, :]
    if GATED:
        k = tl.arange(0, BK)
        left = a[:, None] + k[None, :]
        right = matrix + n[None, :] * D + k[:, None]
        gate, other = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
        for start in range(0, D, BK):
            one = load_left(left, start, D, BK, DOT)
            gate = tl.dot(
                one, load_right(right, start, n, D, F, BK, BN, DOT), gate, input_precision=PRECISION
            )
            other = tl.dot(
                one, load_right(right + F * D, start, n, D, F, BK, BN, DOT), other, input_precision=PRECISION
            )
            left += BK
            right += BK
        made = activated(gate, SILU) * other
    else:
        gate = product(a, matrix, n, D, F, True, BM, BN, BK, DOT, PRECISION)
        made = activated(gate, SILU)
    kept = before + row.to(tl.int64)[:, None] * WIDE + n[None, :]
    if KEEP:
        tl.store(kept, gate.to(before.dtype.element_ty), mask=inside)
        if GATED:
            tl.store(kept + F, other.to(before.dtype.element_ty), mask=inside)
    out = hidden + row.to(tl.int64)[:, None] * F + n[None, :]
    tl.store(out, made.to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def place_back_kernel(
    rows, matrices, order, table, weights, out, tiles,
    K: tl.constexpr, N: tl.constexpr, TURNED: tl.constexpr, WEIGHED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (S, N) in the order of pairs, of rows (S, K) in that of experts, WEIGHED: times the pair's weight.
    matrices: (E, K, N), TURNED (E, N, K)."""
    tile, block = place_of(tiles, tl.cdiv(N, BN), GROUP)
    expert, first, last = tile_of(table, tile)
    if first >= last:
        return
    row = first + tl.arange(0, BM)
    safe = tl.minimum(row, last - 1)
    n = block * BN + tl.arange(0, BN)
    made = product(
        rows + safe.to(tl.int64) * K, matrices + expert.to(tl.int64) * (K * N), n,
        K, N, TURNED, BM, BN, BK, DOT, PRECISION,
    )  # fmt: skip
    pair = tl.load(order + safe)
    if WEIGHED:
        made *= tl.load(weights + pair).to(tl.float32)[:, None]
    place = out + pair.to(tl.int64)[:, None] * N + n[None, :]
    tl.store(place, made.to(out.dtype.element_ty), mask=(row < last)[:, None] & (n < N)[None, :])


@triton.jit
def halves(x, BM: tl.constexpr, BN: tl.constexpr):
    """The left and the right half of (BM, BN)."""
    return tl.split(tl.permute(tl.reshape(x, (BM, 2, BN // 2)), (0, 2, 1)))


@triton.jit
def through(
    made, row, last, n, weight, hidden, before, dbefore, F: tl.constexpr, GATED: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """Writes columns `n` of dbefore, of their products `made`; (BM,) their shares of the weight's."""
    inside = (row < last)[:, None] & (n < F)[None, :]
    own = tl.load(hidden + row.to(tl.int64)[:, None] * F + n[None, :], mask=inside, other=0.0).to(tl.float32)
    share = tl.sum(made * own, 1)
    made *= weight[:, None]
    WIDE: tl.constexpr = 2 * F if GATED else F
    place = row.to(tl.int64)[:, None] * WIDE + n[None, :]
    kind = dbefore.dtype.element_ty
    if GATED:
        gate = tl.load(before + place, mask=inside, other=0.0).to(tl.float32)
        other = tl.load(before + F + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(dbefore + place, (made * other * slope_of(gate, SILU)).to(kind), mask=inside)
        tl.store(dbefore + F + place, (made * activated(gate, SILU)).to(kind), mask=inside)
    elif SILU:
        read = tl.load(before + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(dbefore + place, (made * silu_slope(read)).to(kind), mask=inside)
    else:
        tl.store(dbefore + place, tl.where(own > 0.0, made, 0.0).to(kind), mask=inside)
    return share


@triton.jit
def hidden_grad_kernel(
    dy, down, order, table, weights, hidden, before, dbefore, shares, tiles, pairs,
    D: tl.constexpr, F: tl.constexpr, EACH: tl.constexpr, GATED: tl.constexpr, SILU: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dbefore (S, F) or gated (S, 2 F), in the order of experts: the gradient of what the activation read.
    shares (blocks, S) in that of pairs, in float32: of the weight's gradient, each block of columns'."""
    tile, block = place_of(tiles, tl.cdiv(F, BN), GROUP)
    expert, first, last = tile_of(table, tile)
    if first >= last:
        return
    row = first + tl.arange(0, BM)
    pair = tl.load(order + tl.minimum(row, last - 1))
    n = block * BN + tl.arange(0, BN)
    made = product(
        dy + (pair // EACH).to(tl.int64) * D, down + expert.to(tl.int64) * (D * F), n,
        D, F, False, BM, BN, BK, DOT, PRECISION,
    )  # fmt: skip
    weight = tl.load(weights + pair).to(tl.float32)
    # a quarter of the columns at a time: all of what they meet would not fit the registers
    one, two = halves(made, BM, BN)
    first_quarter, second_quarter = halves(one, BM, BN // 2)
    third_quarter, fourth_quarter = halves(two, BM, BN // 2)
    n, more = block * BN + tl.arange(0, BN // 4), BN // 4
    share = through(first_quarter, row, last, n, weight, hidden, before, dbefore, F, GATED, SILU)
    share += through(second_quarter, row, last, n + more, weight, hidden, before, dbefore, F, GATED, SILU)
    share += through(third_quarter, row, last, n + 2 * more, weight, hidden, before, dbefore, F, GATED, SILU)
    share += through(fourth_quarter, row, last, n + 3 * more, weight, hidden, before, dbefore, F, GATED, SILU)
    tl.store(shares + block.to(tl.int64) * pairs + pair, share, mask=row < last)
