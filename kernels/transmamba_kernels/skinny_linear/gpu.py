"""The product of a few rows in Triton: one launch that reads the matrix once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..backend import interpreted
from ..triton_common import FUSED, cdiv, on_device_of, rows
from . import reference
from .kernels import linear_kernel
from .reference import MOST_ROWS

# Columns of a matrix that a program takes a step, or half of them.
STEP = 128
# What is multiplied; the interpreter's products know no bfloat16.
_KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@dataclass(frozen=True)
class Convolution:
    """What is made of the product's columns `first` to `first` + C, with SiLU: `made` (M, C), float32. state
    (M, C, S) is moved on; weight (C, K), bias (C,).
    """

    first: int = 0
    state: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    made: Tensor | None = None


@dataclass(frozen=True)
class Weighed:
    """What a norm of the product and its residual needs: its weight (N,), and where the product times that
    (M, N) and each block's part of the sums of squares (blocks, R) go.
    """

    weight: Tensor | None = None
    made: Tensor | None = None
    squares: Tensor | None = None


def skinny_linear(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    """Arguments as in `transmamba_kernels.skinny_linear`; y (..., N)."""
    flat = x.reshape(-1, x.shape[-1])
    if not streams(flat, weight):
        return reference.skinny_linear(x, weight, residual)
    more = None if residual is None else residual.reshape(len(flat), len(weight))
    run = _product_op if torch.compiler.is_compiling() else _product
    return run(flat, weight, more).view(*x.shape[:-1], len(weight))


def streams(x: Tensor, *matrices: Tensor) -> bool:
    """Whether the kernels take rows x (M, K) and these matrices (N, K)."""
    whole = all(m.is_contiguous() and m.numel() > 0 for m in matrices) and x.shape[1] % STEP == 0
    return whole and x.dtype in (torch.bfloat16, torch.float16) and 0 < len(x) <= MOST_ROWS


def kinds(x: Tensor) -> dict[str, Any]:
    """What a launch for rows x has whatever its blocks are."""
    dot = _KINDS[torch.float32 if interpreted() else x.dtype]
    return {"R": 8 if len(x) <= 8 else MOST_ROWS, "DOT": dot, **FUSED}


def _product(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    return launch(x, weight, residual)


def blocks_of(columns: int, width: int) -> tuple[int, int]:
    """Columns that a program makes, and how many of K it takes a step."""
    # Blocks of 64 rows leave multiprocessors of a large GPU without one where the matrix has few.
    if columns > 64 * 150:
        return 64, STEP
    return 32, 2 * STEP if width % (2 * STEP) == 0 else STEP


def launch(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    convolution: Convolution | None = None,
    weighed: Weighed | None = None,
) -> Tensor:
    """y (M, N) of what `streams` has let pass, x (M, K) and residual (M, N)."""
    x = rows(x)
    residual = None if residual is None else rows(residual)
    (count, width), columns = x.shape, len(weight)
    y = torch.empty(count, columns, dtype=x.dtype, device=x.device)
    conv = Convolution() if convolution is None else convolution
    state, taps = conv.state, conv.weight
    norm = Weighed() if weighed is None else weighed
    block, step = blocks_of(columns, width)
    with on_device_of(x):
        linear_kernel[(cdiv(columns, block),)](
            x,
            weight,
            residual,
            y,
            state,
            None if taps is None else taps.contiguous(),
            None if conv.bias is None else conv.bias.contiguous(),
            conv.made,
            norm.weight,
            norm.made,
            norm.squares,
            count,
            columns,
            width,
            conv.first,
            0 if taps is None else len(taps),
            x.stride(0),
            0 if residual is None else residual.stride(0),
            *((0, 0, 0) if state is None else state.stride()),
            BN=block,
            BK=step,
            TAPS=0 if taps is None else taps.shape[1],
            KEPT=0 if state is None else state.shape[2],
            num_warps=4,
            num_stages=5,  # 96 KiB at most, of 99 that a block of smaller GPUs has
            **kinds(x),
        )
    return y


_product_op = torch.library.custom_op(
    "transmamba::skinny_linear_triton",
    _product,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? residual) -> Tensor",
)
_product_op.register_fake(lambda x, weight, residual: x.new_empty(len(x), len(weight)))
