"""Both products of a few rows and the gate in Triton: one launch that reads each matrix once, two with the
product and the norm before them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rms_norm import gpu as norm
from ..silu_mul import gpu as silu_mul
from ..skinny_linear import gpu as skinny
from ..skinny_linear.gpu import STEP, kinds, streams
from ..skinny_linear.kernels import gated_kernel
from ..triton_common import cdiv, on_device_of, power_of_2, rows

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
    return launch(x, gate, up)


def launch(x: Tensor, gate: Tensor, up: Tensor, squares: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """y (M, N). squares (blocks, R): parts of the rows' sums of squares, by the roots of whose means they are
    yet to be divided."""
    x = rows(x)
    blocks = 0 if squares is None else len(squares)
    (count, width), columns = x.shape, len(gate)
    y = torch.empty(count, columns, dtype=x.dtype, device=x.device)
    with on_device_of(x):
        gated_kernel[(cdiv(columns, BLOCK),)](
            x,
            gate,
            up,
            y,
            squares,
            blocks,
            eps,
            count,
            columns,
            width,
            x.stride(0),
            BN=BLOCK,
            BK=STEP,
            BLOCKS=power_of_2(max(blocks, 1)),
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


def normed_gated_product(
    x: Tensor, weight: Tensor, residual: Tensor, norm_weight: Tensor, eps: float, gate: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.normed_gated_product`; stream (..., N), y (..., F)."""
    flat, more = x.reshape(-1, x.shape[-1]), residual.reshape(-1, residual.shape[-1])
    # in float16 a stream that is not divided yet may be too large when it is weighed
    if x.dtype != torch.bfloat16 or not (streams(flat, weight) and streams(more, gate, up)):
        stream = skinny.skinny_linear(x, weight, residual)
        return stream, gated_product(
            norm.rms_norm(stream, norm_weight, eps, None, stream.shape[-1]), gate, up
        )
    run = _normed_op if torch.compiler.is_compiling() else _normed
    stream, y = run(flat, weight, more, norm_weight, eps, gate, up)
    return stream.view(residual.shape), y.view(*residual.shape[:-1], len(gate))


def _normed(
    x: Tensor, weight: Tensor, residual: Tensor, norm_weight: Tensor, eps: float, gate: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    block, _ = skinny.blocks_of(*weight.shape)
    squares = torch.empty(cdiv(len(weight), block), kinds(x)["R"], dtype=torch.float32, device=x.device)
    made = torch.empty(residual.shape, dtype=x.dtype, device=x.device)
    weighed = skinny.Weighed(norm_weight.contiguous(), made, squares)
    return skinny.launch(x, weight, residual, weighed=weighed), launch(made, gate, up, squares, eps)


_normed_op = torch.library.custom_op(
    "transmamba::normed_gated_product_triton",
    _normed,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor residual, Tensor norm_weight, float eps, Tensor gate, "
    "Tensor up) -> (Tensor, Tensor)",
)
_normed_op.register_fake(
    lambda x, weight, residual, norm_weight, eps, gate, up: (
        x.new_empty(len(x), len(weight)),
        x.new_empty(len(x), len(gate)),
    )
)
