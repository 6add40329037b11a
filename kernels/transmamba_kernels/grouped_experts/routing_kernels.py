# mypy: ignore-errors
"""A stable sort by counting, and who computes which rows: all on the device, which nobody waits for.

Pairs of a token and an expert, S = N k of them in the order of `chosen`, are sorted by expert. `bounds` (E,
blocks): of the running count over experts and, within one, over blocks of pairs. So an expert's rows end at
its last entry. A grid is as long as the tiles can ever be, S / size + E; those behind the last have no rows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def hits_of(chosen, pairs, block, BLOCK: tl.constexpr, EP: tl.constexpr):
    """(BLOCK,) pairs of a block, (BLOCK, EP) which expert each has."""
    i = block * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(chosen + i, mask=i < pairs, other=-1).to(tl.int32)
    return i, (expert[:, None] == tl.arange(0, EP)[None, :]).to(tl.int32)


@triton.jit
def count_kernel(chosen, counts, pairs, experts, blocks, BLOCK: tl.constexpr, EP: tl.constexpr):
    """counts (E, blocks)"""
    block = tl.program_id(0)
    _, hits = hits_of(chosen, pairs, block, BLOCK, EP)
    e = tl.arange(0, EP)
    tl.store(counts + e * blocks + block, tl.sum(hits, 0), mask=e < experts)


@triton.jit
def place_kernel(chosen, bounds, order, pairs, experts, blocks, BLOCK: tl.constexpr, EP: tl.constexpr):
    """order (S,): the pair of each row."""
    block = tl.program_id(0)
    i, hits = hits_of(chosen, pairs, block, BLOCK, EP)
    e = tl.arange(0, EP)
    upto = tl.load(bounds + e * blocks + block, mask=e < experts, other=0)
    place = (upto - tl.sum(hits, 0))[None, :] + tl.cumsum(hits, 0) - 1
    row = tl.sum(tl.where(hits > 0, place, 0), 1)
    # one that no expert has would be written over another's
    known = tl.sum(tl.where(e[None, :] < experts, hits, 0), 1) > 0
    tl.store(order + row, i, mask=known)


@triton.jit
def rows_of(bounds, e, experts, blocks):
    """Where the rows of experts `e` begin and end."""
    inside = e < experts
    first = tl.load(bounds + e * blocks - 1, mask=inside & (e > 0), other=0)
    last = tl.load(bounds + e * blocks + blocks - 1, mask=inside, other=0)
    return tl.where(inside, first, 0), last


@triton.jit
def table_kernel(bounds, table, experts, blocks, tiles, size, BT: tl.constexpr, EP: tl.constexpr):
    """table (tiles, 3): a tile's expert, its first row and the row behind its last."""
    e = tl.arange(0, EP)
    first, last = rows_of(bounds, e, experts, blocks)
    many = (last - first + size - 1) // size
    upto = tl.cumsum(many, 0)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    passed = (upto[None, :] <= t[:, None]) & (e[None, :] < experts)
    own = tl.sum(passed.to(tl.int32), 1)
    mine = e[None, :] == own[:, None]
    begin = tl.where(mine, (first - (upto - many) * size)[None, :], 0)
    begin = tl.sum(begin, 1) + t * size
    end = tl.minimum(tl.sum(tl.where(mine, last[None, :], 0), 1), begin + size)
    there = t < tiles
    tl.store(table + 3 * t, own, mask=there)
    tl.store(table + 3 * t + 1, begin, mask=there)
    tl.store(table + 3 * t + 2, end, mask=there)


@triton.jit
def tile_of(table, tile):
    """A tile's expert, its first row and the row behind its last."""
    return tl.load(table + 3 * tile), tl.load(table + 3 * tile + 1), tl.load(table + 3 * tile + 2)
