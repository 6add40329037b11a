"""The Triton kernel that adds up, in order, the parts that the programs of the scan's backward leave."""

# mypy: ignore-errors
# ruff: noqa: RUF005
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reduce_kernel(
    gBC_ptr, small_ptr, gB_ptr, gC_ptr, gA_ptr, gD_ptr, gbias_ptr, ROWS, NBLK, PARTS, DIM, NSTATE,
    N: tl.constexpr, BT: tl.constexpr, LOADS: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The partial sums added up in order: gB and gC (rows, NSTATE) from gBC (rows, NBLK, N, 2), BT rows a
    program; and by the programs behind them gA (DIM, NSTATE), gD and gbias (DIM,) from small
    (PARTS, NSTATE + 2, DIM), BD channels of one of its rows a program."""
    work = tl.program_id(0)
    first = (ROWS + BT - 1) // BT
    if work < first:
        add_rows(gBC_ptr, gB_ptr, gC_ptr, work, ROWS, NBLK, NSTATE, N, BT, LOADS)
    else:
        work -= first
        blocks = (DIM + BD - 1) // BD
        add_parts(
            small_ptr, gA_ptr, gD_ptr, gbias_ptr, work % blocks, work // blocks, PARTS, DIM, NSTATE, BP, BD
        )


@triton.jit
def add_rows(
    gBC_ptr, gB_ptr, gC_ptr, work, ROWS, NBLK, NSTATE,
    N: tl.constexpr, BT: tl.constexpr, LOADS: tl.constexpr,
):  # fmt: skip
    """BT rows of gB and gC, from LOADS blocks at a time, whose loads are under way together."""
    row = work.to(tl.int64) * BT + tl.arange(0, BT)
    m = tl.arange(0, 2 * N)
    inside = row[:, None] * (NBLK * 2 * N) + m[None, :]
    zeros = tl.zeros_like(m)[None, :]
    total = tl.zeros([BT, 2 * N], tl.float32)
    for first in range(0, NBLK, LOADS):
        parts = ()
        for i in tl.static_range(LOADS):
            live = (row < ROWS)[:, None] & (zeros + first + i < NBLK)
            parts = parts + (tl.load(gBC_ptr + inside + (first + i) * (2 * N), mask=live, other=0.0),)
        for i in tl.static_range(LOADS):
            total += parts[i].to(tl.float32)
    gB, gC = tl.split(tl.reshape(total, (BT, N, 2)))
    n = tl.arange(0, N)
    mask = (row < ROWS)[:, None] & (n < NSTATE)[None, :]
    at = row[:, None] * NSTATE + n[None, :]
    tl.store(gB_ptr + at, gB.to(gB_ptr.dtype.element_ty), mask=mask)
    tl.store(gC_ptr + at, gC.to(gC_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_parts(
    small_ptr, gA_ptr, gD_ptr, gbias_ptr, block, row, PARTS, DIM, NSTATE, BP: tl.constexpr, BD: tl.constexpr
):
    """BD channels of one row of small, which is one of gA, or gD, or gbias; BP of its parts at a time."""
    d = block * BD + tl.arange(0, BD)
    part = tl.arange(0, BP)
    total = tl.zeros([BD], tl.float32)
    for first in range(0, PARTS, BP):
        at = ((first + part).to(tl.int64)[:, None] * (NSTATE + 2) + row) * DIM + d[None, :]
        mask = (first + part < PARTS)[:, None] & (d < DIM)[None, :]
        total += tl.sum(tl.load(small_ptr + at, mask=mask, other=0.0), axis=0)
    if row < NSTATE:
        tl.store(gA_ptr + d * NSTATE + row, total, mask=d < DIM)
    elif row == NSTATE:
        tl.store(gD_ptr + d, total, mask=d < DIM)
    else:
        tl.store(gbias_ptr + d, total, mask=d < DIM)
