"""Elementwise Triton kernels around Vim's two scans: the gate over both branches, forward and backward."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import sigmoid, silu


@triton.jit
def gate_kernel(
    ahead_ptr, back_ptr, z_ptr, y_ptr, y_f_ptr, y_b_ptr, COUNT, DIM, sz_b, sz_l, LENGTH,
    HAS_Z: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = (ahead + back) / 2 silu(z), y_f = ahead silu(z), y_b = back silu(z)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < COUNT
    f = tl.load(ahead_ptr + at, mask=live, other=0.0).to(tl.float32)
    b = tl.load(back_ptr + at, mask=live, other=0.0).to(tl.float32)
    if HAS_Z:
        row = at // DIM
        z_at = row // LENGTH * sz_b + row % LENGTH * sz_l + at % DIM
        z = tl.load(z_ptr + z_at, mask=live, other=0.0).to(tl.float32)
        gate = silu(z)
        f *= gate
        b *= gate
    tl.store(y_ptr + at, (0.5 * (f + b)).to(y_ptr.dtype.element_ty), mask=live)
    tl.store(y_f_ptr + at, f.to(y_f_ptr.dtype.element_ty), mask=live)
    tl.store(y_b_ptr + at, b.to(y_b_ptr.dtype.element_ty), mask=live)


@triton.jit
def gate_backward_kernel(
    gy_ptr, gf_ptr, gb_ptr, z_ptr, mean_ptr, back_ptr, out_f_ptr, out_b_ptr, gz_ptr, COUNT, DIM, sz_b, sz_l,
    LENGTH, HAS_Z: tl.constexpr, BRANCHES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of the two ungated scans, one where they are equal, and of z.

    mean: what the gate multiplied; with BRANCHES the forward scan's ungated output, and `back` the other's.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < COUNT
    gy = tl.load(gy_ptr + at, mask=live, other=0.0).to(tl.float32) * 0.5
    g_f = gy
    g_b = gy
    if BRANCHES:
        g_f += tl.load(gf_ptr + at, mask=live, other=0.0).to(tl.float32)
        g_b += tl.load(gb_ptr + at, mask=live, other=0.0).to(tl.float32)
    if HAS_Z:
        row = at // DIM
        z_at = row // LENGTH * sz_b + row % LENGTH * sz_l + at % DIM
        z = tl.load(z_ptr + z_at, mask=live, other=0.0).to(tl.float32)
        s = sigmoid(z)
        value = tl.load(mean_ptr + at, mask=live, other=0.0).to(tl.float32)
        if BRANCHES:
            toward = g_f * value + g_b * tl.load(back_ptr + at, mask=live, other=0.0).to(tl.float32)
        else:
            toward = 2.0 * gy * value
        tl.store(gz_ptr + at, (toward * s * (1.0 + z * (1.0 - s))).to(gz_ptr.dtype.element_ty), mask=live)
        g_f *= z * s
        g_b *= z * s
    tl.store(out_f_ptr + at, g_f.to(out_f_ptr.dtype.element_ty), mask=live)
    if BRANCHES:
        tl.store(out_b_ptr + at, g_b.to(out_b_ptr.dtype.element_ty), mask=live)
