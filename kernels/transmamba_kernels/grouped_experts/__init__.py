"""Two products with a matrix of its own for each token: the experts that a router chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_integers, expect_rank
from . import cpu, reference

__all__ = ["grouped_experts"]

Activation = Literal["relu", "silu"]


def grouped_experts(
    x: Tensor,
    chosen: Tensor,
    weights: Tensor,
    up: Tensor,
    down: Tensor,
    activation: Activation = "relu",
    gated: bool = False,
) -> Tensor:
    """y_n = sum over j of weights[n, j] down_e act(up_e x_n) with e = chosen[n, j]; gated: down_e (act(gate)
    * other), where [gate; other] = up_e x_n.

    x, y: tokens (N, D). chosen: (N, k) integers from 0 to E - 1, which nobody checks. weights: (N, k); one of
    0 costs what others do. up: (E, F, D), gated (E, 2 F, D). down: (E, D, F). Products are of x's dtype, to
    which the matrices are brought, added up in float32; y has x's dtype. Gradients of all but `chosen`.

    Raises ValueError for a shape or dtype that does not fit, for tensors on several devices, and for an
    unknown activation.
    """
    expect_floating(x=x, weights=weights, up=up, down=down)
    expect_integers(x.device, chosen=chosen)
    expect_rank("x", x, "(N, D)")
    expect_rank("chosen", chosen, "(N, k)")
    expect_rank("down", down, "(E, D, F)")
    (count, width), (experts, _, neurons) = x.shape, down.shape
    expect("chosen", chosen, "(N, k)", count, chosen.shape[1])
    expect("weights", weights, "(N, k)", *chosen.shape)
    expect("down", down, "(E, D, F)", experts, width, neurons)
    expect("up", up, "(E, 2 F, D)" if gated else "(E, F, D)", experts, neurons * (1 + gated), width)
    if activation not in ("relu", "silu"):
        raise ValueError(f"activation: {activation!r}, expected 'relu' or 'silu'")
    up, down = up.to(x.dtype), down.to(x.dtype)
    path = choose("grouped_experts", x, weights)
    run: Callable[..., Tensor]
    if path == "triton":
        from . import gpu

        run = gpu.grouped_experts
    else:
        run = reference.grouped_experts if path == "reference" else cpu.grouped_experts
    return run(x, chosen, weights, up, down, activation, gated)
