# mypy: ignore-errors
# ruff: noqa: RUF005, SIM108
"""Triton kernels that cut a scan in time: what leaves each segment, and then what enters it.

Blocks of channels alone fill a GPU only where batch and channels are many. A second, cheaper scan finds what
every segment adds to the state, or to its gradient; the sums of the steps tell how much of the state before
it is left.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu
from .kernels import step_size, within


@triton.jit(
    do_not_specialize_on_alignment=["x_ptr", "dt_ptr", "A_ptr", "z_ptr", "bias_ptr", "state_ptr", "sum_ptr"]
)
def carry_kernel(
    x_ptr, dt_ptr, A_ptr, BC_ptr, z_ptr, bias_ptr, state_ptr, sum_ptr,
    L, SEGMENT, SEGMENTS, NBLK, GROUPS, sx_b, sd_b, sz_b,
    DIM: tl.constexpr, NSTATE: tl.constexpr, GROUP: tl.constexpr,
    sx_l: tl.constexpr, sd_l: tl.constexpr, sz_l: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr, BACKWARD: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, TC: tl.constexpr,
    PAD: tl.constexpr,
):  # fmt: skip
    """What a segment adds to the state that leaves it, (batch, segments, N, DIM), and the sum of its dt.

    Forward: h = a h + dt x B from the segment's first step on. BACKWARD: g = a (g + x silu(z) C) from its
    last step on, the gradient of the state that enters it.
    """
    work = tl.program_id(0)
    pid = work % (NBLK * GROUPS)
    rest = work // (NBLK * GROUPS)
    # Nothing waits for what leaves the last segment of the walk.
    segment = rest % (SEGMENTS - 1)
    if BACKWARD:
        segment += 1
    b = (rest // (SEGMENTS - 1)).to(tl.int64)
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
    SIGN: tl.constexpr = -1 if REVERSE else 1
    # How the loop walks through scan steps, and through raster time.
    WALK: tl.constexpr = -1 if BACKWARD else 1
    STRIDE: tl.constexpr = SIGN * WALK
    first = b * 0 + segment * SEGMENT
    last = tl.minimum(first + SEGMENT, L)
    i = last - 1 if BACKWARD else first
    start = b * 0
    if REVERSE:
        start = b * 0 + L - 1
    px = x_ptr + b * sx_b + (start + SIGN * i) * sx_l + d
    pd = dt_ptr + b * sd_b + (start + SIGN * i) * sd_l + d
    pz = z_ptr + b * sz_b + (start + SIGN * i) * sz_l + d
    pBC = BC_ptr + ((b * GROUPS + group) * (L + 2 * PAD) + PAD + i) * (2 * N) + n
    if BACKWARD:
        pBC += N
    h = tl.zeros([N, BD], tl.float32)
    total = tl.zeros([BD], tl.float32)
    steps = last - first
    xs = ()
    ds = ()
    zs = ()
    for j in tl.static_range(TC):
        ok = within(inside, b * 0 + j, steps, GROUP, BD)
        xs = xs + (tl.load(px + j * STRIDE * sx_l, mask=ok, other=0.0),)
        ds = ds + (tl.load(pd + j * STRIDE * sd_l, mask=ok, other=0.0),)
        if HAS_Z:
            zs = zs + (tl.load(pz + j * STRIDE * sz_l, mask=ok, other=0.0),)
    near = tl.load(pBC)
    far = tl.load(pBC + WALK * (2 * N))
    for k0 in range(0, steps, TC):
        px += TC * STRIDE * sx_l
        pd += TC * STRIDE * sd_l
        pz += TC * STRIDE * sz_l
        nxs = ()
        nds = ()
        nzs = ()
        for j in tl.static_range(TC):
            ok = within(inside, b * 0 + k0 + TC + j, steps, GROUP, BD)
            nxs = nxs + (tl.load(px + j * STRIDE * sx_l, mask=ok, other=0.0),)
            nds = nds + (tl.load(pd + j * STRIDE * sd_l, mask=ok, other=0.0),)
            if HAS_Z:
                nzs = nzs + (tl.load(pz + j * STRIDE * sz_l, mask=ok, other=0.0),)
        for j in tl.static_range(TC):
            ok = within(inside, b * 0 + k0 + j, steps, GROUP, BD)
            row = near
            near = far
            far = tl.load(pBC + (j + 2) * WALK * (2 * N))
            dt = tl.where(ok, step_size(ds[j], bias, SOFTPLUS), 0.0)
            total += dt
            x = xs[j].to(tl.float32)
            if HAS_Z:
                z = zs[j].to(tl.float32)
                x *= silu(z)
            a = tl.exp2(dt[None, :] * A)
            if BACKWARD:
                h = a * (h + x[None, :] * row[:, None])
            else:
                h = a * h + (dt * x)[None, :] * row[:, None]
        xs = nxs
        ds = nds
        zs = nzs
        pBC += TC * WALK * (2 * N)
    place = b * SEGMENTS + segment
    tl.store(state_ptr + (place * NSTATE + n[:, None]) * DIM + d[None, :], h, mask=tm)
    tl.store(sum_ptr + place * DIM + d, total, mask=dm)


@triton.jit
def combine_kernel(
    A_ptr, state_ptr, sum_ptr, outer_ptr, SEGMENTS, DIM, NSTATE,
    HAS_OUTER: tl.constexpr, BACKWARD: tl.constexpr, N: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Replaces what each segment adds by the state that enters it (BACKWARD: the gradient from behind it).

    outer (batch, N, DIM): the state that enters the first segment, or the gradient of the final state.
    """
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    b = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, N)
    dm = d < DIM
    tm = (n < NSTATE)[:, None] & dm[None, :]
    A = tl.load(A_ptr + n[:, None] * DIM + d[None, :], mask=tm, other=0.0)
    h = tl.zeros([N, BD], tl.float32)
    if HAS_OUTER:
        h += tl.load(outer_ptr + (b * NSTATE + n[:, None]) * DIM + d[None, :], mask=tm, other=0.0).to(
            tl.float32
        )
    for s in range(0, SEGMENTS):
        segment = s
        if BACKWARD:
            segment = SEGMENTS - 1 - s
        place = b * SEGMENTS + segment
        pointer = state_ptr + (place * NSTATE + n[:, None]) * DIM + d[None, :]
        more = s < SEGMENTS - 1
        added = tl.load(pointer, mask=tm & (n < tl.where(more, NSTATE, 0))[:, None], other=0.0)
        dt = tl.load(sum_ptr + place * DIM + d, mask=d < tl.where(more, DIM, 0), other=0.0)
        tl.store(pointer, h, mask=tm)
        h = tl.exp2(dt[None, :] * A) * h + added
