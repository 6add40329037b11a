# mypy: ignore-errors
"""The Triton kernel of an MLP's gate."""

from __future__ import annotations

import triton
import triton.language as tl

from ..triton_common import silu


@triton.jit
def gate_kernel(gate, up, y, channels, stride_g, stride_u, BD: tl.constexpr):
    """Grid (rows blocks of D,): a second axis would end at 65535."""
    blocks = tl.cdiv(channels, BD)
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    inside = d < channels
    opened = silu(tl.load(gate + row * stride_g + d, mask=inside, other=0.0).to(tl.float32))
    opened = opened.to(gate.dtype.element_ty).to(tl.float32)
    value = tl.load(up + row * stride_u + d, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * channels + d, (opened * value).to(y.dtype.element_ty), mask=inside)
