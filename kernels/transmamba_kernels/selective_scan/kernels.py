"""Triton kernels of the selective scan, forward. One warp owns BD channels and all their states.

Layout is the whole matter: with N in front and channels along the lanes, every state of a channel lies in one
thread, so that no step needs a shuffle. Triton chooses layouts by the width of the loads it can prove; the
pointers that must not invite wide loads are therefore kept from being specialized on their alignment. B and C
are copied to float32 rows first, in the order of the scan and with zeros around, because every warp reads
every row: converting them once is cheaper than once a warp, and rows past the end need no mask.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102
from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import LOG2E, silu

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def step_size(raw, bias, SOFTPLUS: tl.constexpr):
    dt = raw.to(tl.float32) + bias
    if SOFTPLUS:
        e = tl.exp2(tl.minimum(dt, 20.0) * LOG2E)
        # log(1 + e) loses e's digits where e is small; two terms of its series keep them.
        grown = tl.where(e < 0.004, e * (1.0 - 0.5 * e), tl.log2(1.0 + e) * LN2)
        dt = tl.where(dt > 20.0, dt, grown)
    return dt


@triton.jit
def within(inside, i, end, GROUP: tl.constexpr, BD: tl.constexpr):
    """Which channels of step i there are: none behind the end."""
    if GROUP % BD == 0:
        return tl.zeros([BD], tl.int32) + i < end
    else:
        return inside < tl.where(i < end, GROUP, 0)


@triton.jit
def ids_at(seq_ptr, start, i, L, SIGN: tl.constexpr):
    """The ids of scan step i, negative in padding, and of the step before it."""
    # Steps behind the last one repeat its id, and begin nothing.
    here = tl.load(seq_ptr + start + SIGN * tl.minimum(i, L - 1))
    before = tl.load(seq_ptr + start + SIGN * tl.minimum(tl.maximum(i - 1, 0), L - 1))
    return here, before


@triton.jit
def decays(dt, A, here, before, HAS_SEQ: tl.constexpr):
    """What is left of each state over a scan step, (N, BD): nothing where it begins another sequence, which
    padding does not."""
    exponent = dt[None, :] * A
    if HAS_SEQ:
        # In the exponent it is one instruction with the product.
        exponent += tl.where((here == before) | (here < 0), 0.0, -1e30)
    return tl.exp2(exponent)


@triton.jit
def pack_kernel(
    A_ptr, B_ptr, C_ptr, A_out_ptr, out_ptr, L, BATCH, GROUPS, BLOCKS, DIM, NSTATE, ROWS, sA_d, sA_n,
    sB_b, sB_l, sB_g, sB_n, sC_b, sC_l, sC_g, sC_n,
    REVERSE: tl.constexpr, N: tl.constexpr, BT: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """out (batch, groups, PAD + L + PAD, 2, N): B and C in float32, in scan order, zeros around.

    A_out (N, DIM): A log2 e, by the programs behind the last batch.
    """
    # One axis: the others hold 65,535 programs at most.
    bg = (tl.program_id(0) // BLOCKS).to(tl.int64)
    row = (tl.program_id(0) % BLOCKS) * BT + tl.arange(0, BT).to(tl.int64)
    if bg == BATCH * GROUPS:
        n = tl.arange(0, N)
        live = (row < DIM)[:, None] & (n < NSTATE)[None, :]
        A = tl.load(A_ptr + row[:, None] * sA_d + n[None, :] * sA_n, mask=live, other=0.0).to(tl.float32)
        tl.store(A_out_ptr + n[None, :] * DIM + row[:, None], A * LOG2E, mask=live)
        return
    b, g = bg // GROUPS, bg % GROUPS
    i = row - PAD
    t = i
    if REVERSE:
        t = L - 1 - i
    n = tl.arange(0, N)
    live = ((i >= 0) & (i < L))[:, None] & (n < NSTATE)[None, :]
    pB = B_ptr + b * sB_b + g * sB_g + t[:, None] * sB_l + n[None, :] * sB_n
    pC = C_ptr + b * sC_b + g * sC_g + t[:, None] * sC_l + n[None, :] * sC_n
    out = out_ptr + (bg * ROWS + row[:, None]) * (2 * N) + n[None, :]
    inside = (row < ROWS)[:, None] & (n < N)[None, :]
    tl.store(out, tl.load(pB, mask=live, other=0.0).to(tl.float32), mask=inside)
    tl.store(out + N, tl.load(pC, mask=live, other=0.0).to(tl.float32), mask=inside)


@triton.jit(
    do_not_specialize_on_alignment=[
        "u_ptr", "dt_ptr", "A_ptr", "z_ptr", "D_ptr", "bias_ptr", "enter_ptr", "seq_ptr", "other_ptr",
        "y_ptr", "mean_ptr", "ck_ptr", "fin_ptr",
    ]
)  # fmt: skip
def forward_kernel(
    u_ptr, dt_ptr, A_ptr, BC_ptr, z_ptr, D_ptr, bias_ptr, enter_ptr, seq_ptr, other_ptr,
    y_ptr, mean_ptr, ck_ptr, fin_ptr,
    L, SEGMENT, SEGMENTS, NBLK, GROUPS, su_b, sd_b, sz_b,
    DIM: tl.constexpr, NSTATE: tl.constexpr, GROUP: tl.constexpr,
    su_l: tl.constexpr, sd_l: tl.constexpr, sz_l: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_ENTER: tl.constexpr, HAS_SEQ: tl.constexpr, MERGE: tl.constexpr, KEEP: tl.constexpr,
    FINAL: tl.constexpr, REVERSE: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, TC: tl.constexpr,
    K: tl.constexpr, PAD: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """y (batch, L, DIM), and with KEEP the state before every K-th step, (batch, chunks, N, DIM).

    FAR: B and C are loaded two steps ahead, not one, which pays where few warps hide each other's waiting.
    enter (batch, segments, N, DIM): the state before each segment. MERGE: y is the gated mean of this scan
    and `other`, and `mean` is what the gate multiplies.
    """
    work = tl.program_id(0)
    pid = work % (NBLK * GROUPS)
    rest = work // (NBLK * GROUPS)
    segment = rest % SEGMENTS
    b = (rest // SEGMENTS).to(tl.int64)
    group = pid // NBLK
    inside = (pid % NBLK) * BD + tl.arange(0, BD)
    d = group * GROUP + inside
    dm = inside < GROUP
    n = tl.arange(0, N)
    tm = (n < NSTATE)[:, None] & dm[None, :]
    A = tl.load(A_ptr + n[:, None] * DIM + d[None, :], mask=tm, other=0.0)
    bias = tl.zeros([BD], tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + d, mask=dm, other=0.0).to(tl.float32)
    if HAS_D:
        skip = tl.load(D_ptr + d, mask=dm, other=0.0).to(tl.float32)
    h = tl.zeros([N, BD], tl.float32)
    if HAS_ENTER:
        place = b * SEGMENTS + segment
        h += tl.load(enter_ptr + (place * NSTATE + n[:, None]) * DIM + d[None, :], mask=tm, other=0.0).to(
            tl.float32
        )
    SIGN: tl.constexpr = -1 if REVERSE else 1
    start = b * 0
    if REVERSE:
        start = b * 0 + L - 1
    first = b * 0 + segment * SEGMENT
    last = tl.minimum(first + SEGMENT, L)
    steps = last - first
    pu = u_ptr + b * su_b + (start + SIGN * first) * su_l + d
    pd = dt_ptr + b * sd_b + (start + SIGN * first) * sd_l + d
    pz = z_ptr + b * sz_b + (start + SIGN * first) * sz_l + d
    py = (b * L + start + SIGN * first) * DIM + d
    pBC = BC_ptr + ((b * GROUPS + group) * (L + 2 * PAD) + PAD + first) * (2 * N) + n
    chunk = b * ((L + K - 1) // K) + first // K
    pck = ck_ptr + (chunk * NSTATE + n[:, None]) * DIM + d[None, :]
    us = ()
    ds = ()
    zs = ()
    for j in tl.static_range(TC):
        ok = within(inside, b * 0 + j, steps, GROUP, BD)
        us = us + (tl.load(pu + j * SIGN * su_l, mask=ok, other=0.0),)
        ds = ds + (tl.load(pd + j * SIGN * sd_l, mask=ok, other=0.0),)
        if HAS_Z:
            zs = zs + (tl.load(pz + j * SIGN * sz_l, mask=ok, other=0.0),)
    Bn = tl.load(pBC)
    Cn = tl.load(pBC + N)
    if FAR:
        Bf = tl.load(pBC + 2 * N)
        Cf = tl.load(pBC + 3 * N)
    for k0 in range(0, steps, TC):
        if KEEP:
            if k0 % K == 0:
                tl.store(pck, h.to(ck_ptr.dtype.element_ty), mask=tm)
                pck += NSTATE * DIM
        pu += TC * SIGN * su_l
        pd += TC * SIGN * sd_l
        pz += TC * SIGN * sz_l
        # A group ahead: global memory answers after several steps' worth of arithmetic.
        nus = ()
        nds = ()
        nzs = ()
        for j in tl.static_range(TC):
            ok = within(inside, b * 0 + k0 + TC + j, steps, GROUP, BD)
            nus = nus + (tl.load(pu + j * SIGN * su_l, mask=ok, other=0.0),)
            nds = nds + (tl.load(pd + j * SIGN * sd_l, mask=ok, other=0.0),)
            if HAS_Z:
                nzs = nzs + (tl.load(pz + j * SIGN * sz_l, mask=ok, other=0.0),)
        outs = ()
        means = ()
        for j in tl.static_range(TC):
            ok = within(inside, b * 0 + k0 + j, steps, GROUP, BD)
            Brow = Bn
            Crow = Cn
            if FAR:
                Bn = Bf
                Cn = Cf
                Bf = tl.load(pBC + (j + 2) * (2 * N))
                Cf = tl.load(pBC + (j + 2) * (2 * N) + N)
            else:
                Bn = tl.load(pBC + (j + 1) * (2 * N))
                Cn = tl.load(pBC + (j + 1) * (2 * N) + N)
            u = us[j].to(tl.float32)
            dt = step_size(ds[j], bias, SOFTPLUS)
            if FINAL:
                dt = tl.where(ok, dt, 0.0)
            here, before = 0, 0
            if HAS_SEQ:
                here, before = ids_at(seq_ptr, b * L + start, first + k0 + j, L, SIGN)
                dt = tl.where(here >= 0, dt, 0.0)
            a = decays(dt, A, here, before, HAS_SEQ)
            h = a * h + (dt * u)[None, :] * Brow[:, None]
            y = tl.sum(h * Crow[:, None], axis=0)
            if HAS_D:
                y += skip * u
            if MERGE:
                y = 0.5 * (y + tl.load(other_ptr + py + j * SIGN * DIM, mask=ok, other=0.0).to(tl.float32))
                if HAS_Z and KEEP:
                    means = means + (y.to(mean_ptr.dtype.element_ty),)
            if HAS_Z:
                z = zs[j].to(tl.float32)
                y *= silu(z)
            if HAS_SEQ:
                y = tl.where(here >= 0, y, 0.0)
            outs = outs + (y.to(y_ptr.dtype.element_ty),)
        # Stores come last, so that no load has to wait behind one.
        for j in tl.static_range(TC):
            ok = within(inside, b * 0 + k0 + j, steps, GROUP, BD)
            tl.store(y_ptr + py + j * SIGN * DIM, outs[j], mask=ok)
            if MERGE and HAS_Z and KEEP:
                tl.store(mean_ptr + py + j * SIGN * DIM, means[j], mask=ok)
        us = nus
        ds = nds
        zs = nzs
        py += TC * SIGN * DIM
        pBC += TC * (2 * N)
    if FINAL:
        if segment == SEGMENTS - 1:
            tl.store(fin_ptr + (b * NSTATE + n[:, None]) * DIM + d[None, :], h, mask=tm)
