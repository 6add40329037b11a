"""The root mean square norm of transformers' models, whole or by groups of channels, with a gate or not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_divisor, expect_floating
from . import reference

__all__ = ["rms_norm"]


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, gate: Tensor | None = None, group_size: int | None = None
) -> Tensor:
    """y = weight * (u / sqrt(mean(u^2) + eps)), u = x silu(gate), the mean over each group of channels.

    x, gate: (..., D). weight: (D,). group_size: channels of a group, which divides D; None for all together.
    Statistics in float32; the quotient is rounded to x's dtype before the weight multiplies it, as
    transformers' norms have it, and y (..., D) has the wider dtype of the two. For generation: no gradients.

    Raises ValueError for a shape or dtype that does not fit, and for tensors on several devices.
    """
    expect_floating(x=x, weight=weight, gate=gate)
    if x.dim() == 0:
        raise ValueError("x: shape (), expected (..., D)")
    channels = x.shape[-1]
    expect("weight", weight, "(D,)", channels)
    expect("gate", gate, "(..., D)", *x.shape)
    group = channels if group_size is None else group_size
    expect_divisor("group_size", group, channels)
    path = choose("rms_norm", x, weight, gate)
    run: Callable[..., Tensor] = reference.rms_norm
    if path == "triton":
        from . import gpu

        run = gpu.rms_norm
    with torch.no_grad():
        return run(x=x, weight=weight, eps=eps, gate=gate, group_size=group)
