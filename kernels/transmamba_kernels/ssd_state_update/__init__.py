"""One token of the SSD scan for generation, the state moved on in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_groups, expect_rank
from . import cpu, reference

__all__ = ["ssd_state_update"]


def ssd_state_update(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """state = exp(dt A) state + dt x (x) B; y = (state C + D x) silu(z), for every head.

    state: (B, H, P, N), of any floating-point dtype, changed in place; the arithmetic is that of `ssd_scan`.
    x, z, y: (B, H, P). delta: (B, H). A, delta_bias: (H,). B, C: (B, G, N) where G divides H. D: (H,) or
    (H, P). y has x's dtype. No gradients: use `ssd_scan` for them.

    Raises ValueError for a shape or dtype that does not fit, and for tensors on several devices.
    """
    expect_floating(state=state, x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    expect_rank("x", x, "(B, H, P)")
    expect_rank("B", B, "(B, G, N)")
    (batch, heads, width), (groups, states) = x.shape, B.shape[1:]
    expect("state", state, "(B, H, P, N)", batch, heads, width, states)
    expect("delta", delta, "(B, H)", batch, heads)
    expect("A", A, "(H,)", heads)
    expect_groups("B", groups, heads, "heads")
    expect("B", B, "(B, G, N)", batch, groups, states)
    expect("C", C, "(B, G, N)", batch, groups, states)
    if D is not None and D.dim() == 2:
        expect("D", D, "(H, P)", heads, width)
    else:
        expect("D", D, "(H,)", heads)
    expect("z", z, "(B, H, P)", batch, heads, width)
    expect("delta_bias", delta_bias, "(H,)", heads)
    path = choose("ssd_state_update", state, x, delta, A, B, C, D, z, delta_bias)
    run: Callable[..., Tensor]
    if path == "triton":
        from . import gpu

        run = gpu.ssd_state_update
    else:
        run = reference.ssd_state_update if path == "reference" else cpu.ssd_state_update
    with torch.no_grad():
        return run(
            state=state,
            x=x,
            delta=delta,
            A=A,
            B=B,
            C=C,
            D=D,
            z=z,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
        )
