"""Triton kernels of the selective scan, backward: chunk by chunk from the last to the first.

A chunk's states are made again from the state kept before it and put into memory of the program's own, in
bfloat16 pairs unless the inputs are float32; then the chunk is walked backwards. The gradients of B and C are
sums over channels, which lie in different lanes: the tensor core adds them, by a product with a matrix of
ones, where shuffles would cost as much as all else. No atomics: partial sums are written and added in order.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005
from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import LOG2E, sigmoid
from .kernels import LN2, decays, ids_at, step_size, within


@triton.jit
def sum_channels(gB, gC, chosen, acc, EXACT: tl.constexpr, INTERPRETED: tl.constexpr):
    """Adds the sums over channels of gB and gC (N, BD) to the chosen column of acc (2 N, W), interleaved."""
    both = tl.join(gB, gC)
    N: tl.constexpr = both.shape[0]
    BD: tl.constexpr = both.shape[1]
    both = tl.reshape(tl.permute(both, (0, 2, 1)), (2 * N, BD))
    if INTERPRETED:
        acc = tl.dot(both, chosen.to(tl.float32), acc, input_precision="ieee")
    else:
        one = chosen.to(tl.bfloat16)
        high = both.to(tl.bfloat16)
        acc = tl.dot(high, one, acc)
        if EXACT:
            acc = tl.dot((both - high.to(tl.float32)).to(tl.bfloat16), one, acc)
    return acc


@triton.jit
def keep_state(pointer, h, EXACT: tl.constexpr, N: tl.constexpr, BD: tl.constexpr):
    lane = tl.arange(0, BD)
    if EXACT:
        tl.store(pointer + tl.arange(0, N)[:, None] * BD + lane[None, :], h)
    else:
        rounded = h.to(tl.int32, bitcast=True) + 0x8000
        low, high = tl.split(tl.permute(tl.reshape(rounded, (N // 2, 2, BD)), (0, 2, 1)))
        word = ((low >> 16) & 0xFFFF) | (high & -65536)
        words = pointer.to(tl.pointer_type(tl.int32))
        tl.store(words + tl.arange(0, N // 2)[:, None] * BD + lane[None, :], word)


@triton.jit
def kept_state(pointer, EXACT: tl.constexpr, N: tl.constexpr, BD: tl.constexpr):
    lane = tl.arange(0, BD)
    if EXACT:
        h = tl.load(pointer + tl.arange(0, N)[:, None] * BD + lane[None, :])
    else:
        words = pointer.to(tl.pointer_type(tl.int32))
        word = tl.load(words + tl.arange(0, N // 2)[:, None] * BD + lane[None, :])
        low = (word << 16).to(tl.float32, bitcast=True)
        high = (word & -65536).to(tl.float32, bitcast=True)
        h = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (N, BD))
    return h


@triton.jit(
    do_not_specialize_on_alignment=[
        "gy_ptr", "u_ptr", "dt_ptr", "A_ptr", "z_ptr", "D_ptr", "bias_ptr", "seq_ptr", "ck_ptr", "behind_ptr",
        "gu_ptr", "gdt_ptr", "gz_ptr", "small_ptr", "gBC_ptr", "genter_ptr", "scratch_ptr",
    ]
)  # fmt: skip
def backward_kernel(
    gy_ptr, u_ptr, dt_ptr, A_ptr, BC_ptr, z_ptr, D_ptr, bias_ptr, seq_ptr, ck_ptr, behind_ptr,
    gu_ptr, gdt_ptr, gz_ptr, small_ptr, gBC_ptr, genter_ptr, scratch_ptr,
    L, SEGMENT, SEGMENTS, NBLK, GROUPS, TOTAL, PROGRAMS, sy_b, su_b, sd_b, sz_b,
    DIM: tl.constexpr, NSTATE: tl.constexpr, GROUP: tl.constexpr,
    sy_l: tl.constexpr, su_l: tl.constexpr, sd_l: tl.constexpr, sz_l: tl.constexpr,
    HAS_Z: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_SEQ: tl.constexpr, HAS_BEHIND: tl.constexpr, REVERSE: tl.constexpr, N: tl.constexpr,
    BD: tl.constexpr, TC: tl.constexpr, K: tl.constexpr, PAD: tl.constexpr, EXACT: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Gradients of u, delta and z; partial sums of all others.

    behind (batch, segments, N, DIM): the gradient of the state behind each segment. genter (batch, N, DIM):
    that of the state before the first step. small (batch segments, N + 2, DIM): of A, D and delta_bias.
    gBC (batch, L, groups NBLK, N, 2): of B and C, over BD channels. scratch: memory for each program.
    """
    BLOCKS = NBLK * GROUPS
    SIGN: tl.constexpr = -1 if REVERSE else 1
    W: tl.constexpr = 8
    WORDS: tl.constexpr = N * BD if EXACT else N * BD // 2
    n = tl.arange(0, N)
    column = (tl.arange(0, BD) * 0)[:, None] + tl.arange(0, W)[None, :]
    room = scratch_ptr + tl.program_id(0).to(tl.int64) * (K * WORDS + K * BD)
    steps_room = room + K * WORDS + tl.arange(0, BD)
    for work in range(tl.program_id(0), TOTAL, PROGRAMS):
        pid = work % BLOCKS
        rest = work // BLOCKS
        segment = rest % SEGMENTS
        b = tl.program_id(1).to(tl.int64) + rest // SEGMENTS
        group = pid // NBLK
        inside = (pid % NBLK) * BD + tl.arange(0, BD)
        d = group * GROUP + inside
        dm = inside < GROUP
        tm = (n < NSTATE)[:, None] & dm[None, :]
        place = b * SEGMENTS + segment
        A = tl.load(A_ptr + n[:, None] * DIM + d[None, :], mask=tm, other=0.0)
        bias = tl.zeros([BD], tl.float32)
        if HAS_BIAS:
            bias += tl.load(bias_ptr + d, mask=dm, other=0.0).to(tl.float32)
        skip = tl.zeros([BD], tl.float32)
        if HAS_D:
            skip += tl.load(D_ptr + d, mask=dm, other=0.0).to(tl.float32)
        gA = tl.zeros([N, BD], tl.float32)
        gD = tl.zeros([BD], tl.float32)
        gbias = tl.zeros([BD], tl.float32)
        g = tl.zeros([N, BD], tl.float32)
        if HAS_BEHIND:
            behind = behind_ptr + (place * NSTATE + n[:, None]) * DIM + d[None, :]
            g += tl.load(behind, mask=tm, other=0.0).to(tl.float32)
        start = b * 0
        if REVERSE:
            start = b * 0 + L - 1
        origin = b * 0 + segment * SEGMENT
        end = tl.minimum(origin + SEGMENT, L)
        chunks = (end - origin + K - 1) // K
        pBC0 = BC_ptr + ((b * GROUPS + group) * (L + 2 * PAD) + PAD) * (2 * N) + n
        pck = ck_ptr + ((b * ((L + K - 1) // K) + origin // K) * NSTATE + n[:, None]) * DIM + d[None, :]
        for c0 in range(0, chunks):
            c = chunks - 1 - c0
            h = tl.load(pck + c * (NSTATE * DIM), mask=tm, other=0.0).to(tl.float32)
            first = origin + c * K
            groups = tl.minimum(K // TC, (end - first + TC - 1) // TC)
            pu = u_ptr + b * su_b + (start + SIGN * first) * su_l + d
            pd = dt_ptr + b * sd_b + (start + SIGN * first) * sd_l + d
            pBC = pBC0 + first * (2 * N)
            for s in range(0, groups):
                us = ()
                steps = ()
                for j in tl.static_range(TC):
                    ok = within(inside, first + s * TC + j, end, GROUP, BD)
                    us = us + (tl.load(pu + j * SIGN * su_l, mask=ok, other=0.0),)
                    steps = steps + (tl.load(pd + j * SIGN * sd_l, mask=ok, other=0.0),)
                for j in tl.static_range(TC):
                    ok = within(inside, first + s * TC + j, end, GROUP, BD)
                    dt = tl.where(ok, step_size(steps[j], bias, SOFTPLUS), 0.0)
                    here, before = 0, 0
                    if HAS_SEQ:
                        here, before = ids_at(seq_ptr, b * L + start, first + s * TC + j, L, SIGN)
                        dt = tl.where(here >= 0, dt, 0.0)
                    Brow = tl.load(pBC + j * (2 * N))
                    keep_state(room + (s * TC + j) * WORDS, h, EXACT, N, BD)
                    tl.store(steps_room + (s * TC + j) * BD, dt)
                    a = decays(dt, A, here, before, HAS_SEQ)
                    h = a * h + (dt * us[j].to(tl.float32))[None, :] * Brow[:, None]
                pu += TC * SIGN * su_l
                pd += TC * SIGN * sd_l
                pBC += TC * 2 * N
            # The states were stored by this program's own threads, but maybe by others of them.
            tl.debug_barrier()
            last = first + groups * TC
            pz = z_ptr + b * sz_b + (start + SIGN * last) * sz_l + d
            py = gy_ptr + b * sy_b + (start + SIGN * last) * sy_l + d
            po = (b * L + start + SIGN * last) * DIM + d
            for r in range(0, groups):
                s = groups - 1 - r
                i0 = first + s * TC
                pu -= TC * SIGN * su_l
                pz -= TC * SIGN * sz_l
                py -= TC * SIGN * sy_l
                po -= TC * SIGN * DIM
                pBC -= TC * 2 * N
                ub = ()
                db = ()
                yb = ()
                zb = ()
                for j in tl.static_range(TC):
                    ok = within(inside, i0 + j, end, GROUP, BD)
                    ub = ub + (tl.load(pu + j * SIGN * su_l, mask=ok, other=0.0),)
                    db = db + (tl.load(steps_room + (s * TC + j) * BD),)
                    yb = yb + (tl.load(py + j * SIGN * sy_l, mask=ok, other=0.0),)
                    if HAS_Z:
                        zb = zb + (tl.load(pz + j * SIGN * sz_l, mask=ok, other=0.0),)
                acc = tl.zeros([2 * N, W], tl.float32)
                ous = ()
                ods = ()
                ozs = ()
                for q in tl.static_range(TC - 1, -1, -1):
                    now = h
                    h = kept_state(room + (s * TC + q) * WORDS, EXACT, N, BD)
                    ok = within(inside, i0 + q, end, GROUP, BD)
                    u = ub[q].to(tl.float32)
                    dt = db[q]
                    Brow = tl.load(pBC + q * (2 * N))
                    Crow = tl.load(pBC + q * (2 * N) + N)
                    gy = yb[q].to(tl.float32)
                    here, before = 0, 0
                    if HAS_SEQ:
                        here, before = ids_at(seq_ptr, b * L + start, i0 + q, L, SIGN)
                        gy = tl.where(here >= 0, gy, 0.0)
                    a = decays(dt, A, here, before, HAS_SEQ)
                    x = dt * u
                    if HAS_Z:
                        y = tl.sum(now * Crow[:, None], axis=0) + skip * u
                        z = zb[q].to(tl.float32)
                        gate = sigmoid(z)
                        ozs = ozs + ((gy * y * gate * (1.0 + z * (1.0 - gate))).to(gz_ptr.dtype.element_ty),)
                        gy = gy * z * gate
                    g += gy[None, :] * Crow[:, None]
                    acc = sum_channels(
                        g * x[None, :], gy[None, :] * now, column == q, acc, EXACT, INTERPRETED
                    )
                    gx = tl.sum(g * Brow[:, None], axis=0)
                    g = g * a
                    e = g * h  # the gradient of the exponent, dt A
                    gdt = tl.sum(e * A, axis=0) * LN2 + gx * u
                    gA += e * dt[None, :]
                    gu = gx * dt
                    if HAS_D:
                        gu += gy * skip
                        gD += gy * u
                    if SOFTPLUS:
                        gdt *= 1.0 - tl.exp2(-dt * LOG2E)
                    if HAS_SEQ:
                        gdt = tl.where(here >= 0, gdt, 0.0)
                    gbias += tl.where(ok, gdt, 0.0)
                    ous = ous + (gu.to(gu_ptr.dtype.element_ty),)
                    ods = ods + (gdt.to(gdt_ptr.dtype.element_ty),)
                for j in tl.static_range(TC):
                    ok = within(inside, i0 + j, end, GROUP, BD)
                    tl.store(gu_ptr + po + j * SIGN * DIM, ous[TC - 1 - j], mask=ok)
                    tl.store(gdt_ptr + po + j * SIGN * DIM, ods[TC - 1 - j], mask=ok)
                    if HAS_Z:
                        tl.store(gz_ptr + po + j * SIGN * DIM, ozs[TC - 1 - j], mask=ok)
                w = tl.arange(0, W)
                m = tl.arange(0, 2 * N)
                t = start + SIGN * (i0 + w)
                live = (i0 + w < end) & (w < TC)
                out = gBC_ptr + ((b * L + t) * BLOCKS + pid)[None, :] * (2 * N) + m[:, None]
                tl.store(out, acc.to(gBC_ptr.dtype.element_ty), mask=(m < 2 * N)[:, None] & live[None, :])
            # Every state of the chunk is read before the next chunk's are written over it.
            tl.debug_barrier()
        small = small_ptr + place * (NSTATE + 2) * DIM + d
        tl.store(small[None, :] + n[:, None] * DIM, gA, mask=tm)
        tl.store(small + NSTATE * DIM, gD, mask=dm)
        tl.store(small + (NSTATE + 1) * DIM, gbias, mask=dm)
        if segment == 0:
            tl.store(genter_ptr + (b * NSTATE + n[:, None]) * DIM + d[None, :], g, mask=tm)
