"""What stands between the products of a gated MLP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_dtype_of, expect_floating
from . import reference

__all__ = ["silu_mul"]


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """y = silu(gate) up, all (..., D), in one dtype.

    silu(gate) is rounded to that dtype before it is multiplied, as transformers' MLPs have it. For
    generation: no gradients.

    Raises ValueError for shapes, dtypes or devices that are not alike.
    """
    expect_floating(gate=gate, up=up)
    expect("up", up, "gate's (..., D)", *gate.shape)
    expect_dtype_of("gate", gate, up=up)
    path = choose("silu_mul", gate, up)
    run: Callable[..., Tensor] = reference.silu_mul
    if path == "triton":
        from . import gpu

        run = gpu.silu_mul
    with torch.no_grad():
        return run(gate, up)
