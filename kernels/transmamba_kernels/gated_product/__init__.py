"""The first half of a gated MLP for a few tokens: two products and what stands between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_dtype_of, expect_floating, expect_rank
from . import reference

__all__ = ["gated_product"]


def gated_product(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """y = silu(x gate^T) (x up^T).

    x: (..., K). gate, up: (N, K). y: (..., N), in their one dtype, to which both products and silu's value
    are rounded, as a transformers MLP has it. For generation, where reading the matrices is what it costs: no
    gradients.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    expect_floating(x=x, gate=gate, up=up)
    expect_rank("gate", gate, "(N, K)")
    if x.dim() == 0:
        raise ValueError("x: shape (), expected (..., K)")
    expect("gate", gate, "(N, K)", gate.shape[0], x.shape[-1])
    expect("up", up, "(N, K)", *gate.shape)
    expect_dtype_of("x", x, gate=gate, up=up)
    path = choose("gated_product", x, gate, up)
    run: Callable[..., Tensor] = reference.gated_product
    if path == "triton":
        from . import gpu

        run = gpu.gated_product
    with torch.no_grad():
        return run(x, gate, up)
