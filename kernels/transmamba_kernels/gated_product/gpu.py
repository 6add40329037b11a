"""Both products of a few rows and the gate in Triton: one launch that reads each matrix once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..silu_mul import gpu as silu_mul
from ..skinny_linear.gpu import STEP, kinds, streams
from ..skinny_linear.kernels import gated_kernel
from ..triton_common import cdiv, on_device_of, rows

# Rows of each matrix that a program takes.
BLOCK = 32


def gated_product(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """Arguments as in `transmamba_kernels.gated_product`; y (..., N)."""
    flat = x.reshape(-1, x.shape[-1])
    if not streams(flat, gate, up):
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
            BN=BLOCK,
            BK=STEP,
            num_warps=4,
            num_stages=3,
            **kinds(x),
        )
    return y


_product_op = torch.library.custom_op(
    "transmamba::gated_product_triton",
    _product,
    mutates_args=(),
    schema="(Tensor x, Tensor gate, Tensor up) -> Tensor",
)
_product_op.register_fake(lambda x, gate, up: x.new_empty(len(x), len(gate)))
