"""One token of the selective scan for generation, the state moved on in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_groups, expect_rank
from . import cpu, reference

__all__ = ["selective_state_update"]


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """state = exp(dt A) state + dt B u; y = (C . state + D u) silu(z), for every channel.

    state: (B, D, N), of any floating-point dtype, changed in place; the arithmetic is that of
    `selective_scan`. u, delta, z, y: (B, D). A: (D, N). B, C: (B, N), or (B, G, N) where G divides D. D,
    delta_bias: (D,). y has u's dtype. No gradients: use `selective_scan` for them.

    Raises ValueError for a shape or dtype that does not fit, and for tensors on several devices.
    """
    expect_floating(state=state, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    expect_rank("u", u, "(B, D)")
    expect_rank("A", A, "(D, N)")
    (batch, channels), states = u.shape, A.shape[1]
    expect("state", state, "(B, D, N)", batch, channels, states)
    expect("delta", delta, "(B, D)", batch, channels)
    expect("A", A, "(D, N)", channels, states)
    for name, matrix in (("B", B), ("C", C)):
        if matrix.dim() == 3:
            expect_groups(name, matrix.shape[1], channels, "channels")
            expect(name, matrix, "(B, G, N)", batch, matrix.shape[1], states)
        else:
            expect(name, matrix, "(B, N)", batch, states)
    if B.shape[1:-1] != C.shape[1:-1]:
        raise ValueError(f"C: shape {tuple(C.shape)}, expected as many groups as B, {tuple(B.shape)}")
    expect("D", D, "(D,)", channels)
    expect("z", z, "(B, D)", batch, channels)
    expect("delta_bias", delta_bias, "(D,)", channels)
    path = choose("selective_state_update", state, u, delta, A, B, C, D, z, delta_bias)
    run: Callable[..., Tensor]
    if path == "triton":
        from . import gpu

        run = gpu.selective_state_update
    else:
        run = reference.selective_state_update if path == "reference" else cpu.selective_state_update
    with torch.no_grad():
        return run(
            state=state,
            u=u,
            delta=delta,
            A=A,
            B=B,
            C=C,
            D=D,
            z=z,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
        )
