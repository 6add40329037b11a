"""A product of a few rows with a matrix, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_dtype_of, expect_floating, expect_rank
from . import reference

__all__ = ["skinny_linear"]


def skinny_linear(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """y = x weight^T (+ residual).

    x: (..., K). weight: (N, K). residual: (..., N). y: (..., N), in their one dtype, to which the product
    is rounded before `residual` is added. For generation, where reading the matrix is what it costs: no
    gradients.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    expect_floating(x=x, weight=weight)
    expect_rank("weight", weight, "(N, K)")
    if x.dim() == 0:
        raise ValueError("x: shape (), expected (..., K)")
    expect("weight", weight, "(N, K)", weight.shape[0], x.shape[-1])
    if residual is not None:
        expect("residual", residual, "(..., N)", *x.shape[:-1], weight.shape[0])
    expect_dtype_of("x", x, weight=weight, residual=residual)
    path = choose("skinny_linear", x, weight, residual)
    run: Callable[..., Tensor] = reference.skinny_linear
    if path == "triton":
        from . import gpu

        run = gpu.skinny_linear
    with torch.no_grad():
        return run(x, weight, residual)
