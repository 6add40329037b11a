"""The first half of a gated MLP for a few tokens: two products and what stands between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_dtype_of, expect_floating, expect_rank
from . import reference

__all__ = ["gated_product", "normed_gated_product"]


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


def normed_gated_product(
    x: Tensor, weight: Tensor, residual: Tensor, norm_weight: Tensor, eps: float, gate: Tensor, up: Tensor
) -> tuple[Tensor, Tensor]:
    """stream = residual + x weight^T; y = `gated_product` of its norm, norm_weight stream /
    sqrt(mean(stream^2) + eps).

    x: (..., K). weight: (N, K). residual: (..., N). norm_weight: (N,). gate, up: (F, N). stream: (..., N), y:
    (..., F), in their one dtype. What stands between a mixer and its MLP's first half, for generation: no
    gradients. The kernels round what is normed once, before its division, where `rms_norm` does so before and
    after its weight.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    tensors: dict[str, Any] = dict(x=x, weight=weight, residual=residual, norm_weight=norm_weight)
    tensors |= dict(gate=gate, up=up)
    expect_floating(**tensors)
    expect_rank("weight", weight, "(N, K)")
    expect_rank("gate", gate, "(F, N)")
    if x.dim() == 0:
        raise ValueError("x: shape (), expected (..., K)")
    channels = len(weight)
    expect("weight", weight, "(N, K)", channels, x.shape[-1])
    expect("residual", residual, "(..., N)", *x.shape[:-1], channels)
    expect("norm_weight", norm_weight, "(N,)", channels)
    expect("gate", gate, "(F, N)", len(gate), channels)
    expect("up", up, "(F, N)", *gate.shape)
    expect_dtype_of("x", x, **tensors)
    path = choose("normed_gated_product", *tensors.values())
    run: Callable[..., tuple[Tensor, Tensor]] = reference.normed_gated_product
    if path == "triton":
        from . import gpu

        run = gpu.normed_gated_product
    with torch.no_grad():
        return run(eps=eps, **tensors)
