"""Both products of a few rows and the gate in Triton: one launch that reads each matrix once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from ..backend import interpreted
from ..silu_mul import gpu as silu_mul
from ..triton_common import FUSED, cdiv, on_device_of, rows
from .kernels import gated_kernel

# Rows of x that a program holds: more are a product that computes, for which there are better kernels.
MOST_ROWS = 16
# Rows of a matrix a program, and columns a step: three steps in flight leave room for two programs.
BLOCK, STEP, STAGES = 64, 128, 3
# What is multiplied; the interpreter's products know no bfloat16.
_KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def gated_product(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Arguments as in `transmamba_kernels.gated_product`; y (..., N)."""
    flat = x.reshape(-1, x.shape[-1])
    whole = gate.is_contiguous() and up.is_contiguous() and gate.shape[1] % STEP == 0
    half = x.dtype in (torch.bfloat16, torch.float16)
    if not (whole and half and 0 < len(flat) <= MOST_ROWS and gate.numel()):
        return silu_mul.silu_mul(F.linear(x, gate), F.linear(x, up))
    run = _product_op if torch.compiler.is_compiling() else _product
    return run(flat, gate, up).view(*x.shape[:-1], len(gate))


def _product(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    x = rows(x)
    (count, width), columns = x.shape, len(gate)
    y = torch.empty(count, columns, dtype=x.dtype, device=x.device)
    with on_device_of(x):
        gated_kernel[(cdiv(columns, BLOCK),)](
            x,
            gate,
            up,
            y,
            count,
            columns,
            width,
            x.stride(0),
            R=MOST_ROWS,
            BN=BLOCK,
            BK=STEP,
            DOT=_KINDS[torch.float32 if interpreted() else x.dtype],
            num_warps=4,
            num_stages=STAGES,
            **FUSED,
        )
    return y


_product_op = torch.library.custom_op(
    "transmamba::gated_product_triton",
    _product,
    mutates_args=(),
    schema="(Tensor x, Tensor gate, Tensor up) -> Tensor",
)
_product_op.register_fake(lambda x, gate, up: x.new_empty(len(x), len(gate)))
