# mypy: ignore-errors
"""One program a row: it reads both rows of logits once, and keeps a running maximum, normaliser and sum.

With s and t the logits times log2(e) / T, m their maxima and Z the sums of 2^(x - m):
KL / ln 2 = (sum of 2^(t - m_t) (t - s)) / Z_t - (m_t - m_s) - log2 Z_t + log2 Z_s. The backward pass reads
them once more: (q - p) / T times the row's gradient.
"""

from __future__ import annotations

import triton
import triton.language as tl

# In the place of a maximum of nothing: finite, so that no difference of infinities arises.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def row_of(pointer, row, stride):
    return pointer + tl.cast(row, tl.int64) * stride


@triton.jit
def block_of(pointer, start, V, scale, BLOCK: tl.constexpr):
    """BLOCK logits from `start` on, scaled; -inf behind the last."""
    j = start + tl.arange(0, BLOCK)
    return tl.load(pointer + j, mask=j < V, other=float("-inf")).to(tl.float32) * scale


@triton.jit
def forward_kernel(student, teacher, kl, norm_s, norm_t, V, stride_s, stride_t, scale, BLOCK: tl.constexpr):
    """norm: m + log2 Z of each row, which the backward pass needs."""
    row = tl.program_id(0)
    s_row, t_row = row_of(student, row, stride_s), row_of(teacher, row, stride_t)
    m_s = tl.full((), LOWEST, tl.float32)
    m_t, z_s, z_t, apart = m_s, 0.0 * m_s, 0.0 * m_s, 0.0 * m_s
    for start in range(0, V, BLOCK):
        s, t = block_of(s_row, start, V, scale, BLOCK), block_of(t_row, start, V, scale, BLOCK)
        top_s, top_t = tl.maximum(m_s, tl.max(s, 0)), tl.maximum(m_t, tl.max(t, 0))
        shrunk = tl.exp2(m_t - top_t)
        p = tl.exp2(t - top_t)
        z_s = z_s * tl.exp2(m_s - top_s) + tl.sum(tl.exp2(s - top_s), 0)
        z_t = z_t * shrunk + tl.sum(p, 0)
        # what the teacher never says adds nothing, whatever the student has there
        apart = tl.where(shrunk == 0.0, 0.0, apart * shrunk) + tl.sum(tl.where(p == 0.0, 0.0, p * (t - s)), 0)
        m_s, m_t = top_s, top_t
    log_s, log_t = tl.log2(z_s), tl.log2(z_t)
    LN2 = 0.6931471805599453
    tl.store(kl + row, LN2 * (apart / z_t - (m_t - m_s) - (log_t - log_s)))
    tl.store(norm_s + row, m_s + log_s)
    tl.store(norm_t + row, m_t + log_t)


@triton.jit
def backward_kernel(
    student, teacher, grad, norm_s, norm_t, out, V, stride_s, stride_t, scale, slope, BLOCK: tl.constexpr
):
    """slope: 1 / T. out: (N, V), contiguous."""
    row, start = tl.program_id(0), tl.program_id(1) * BLOCK
    s = block_of(row_of(student, row, stride_s), start, V, scale, BLOCK)
    t = block_of(row_of(teacher, row, stride_t), start, V, scale, BLOCK)
    factor = tl.load(grad + row).to(tl.float32) * slope
    found = factor * (tl.exp2(s - tl.load(norm_s + row)) - tl.exp2(t - tl.load(norm_t + row)))
    j = start + tl.arange(0, BLOCK)
    tl.store(row_of(out, row, V) + j, found.to(out.dtype.element_ty), mask=j < V)
