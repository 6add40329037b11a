"""One token of the selective scan in Triton: one launch, which a CUDA graph can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton_common import FUSED, cdiv, on_device_of, power_of_2, rows
from . import cpu
from .kernels import step_kernel

# Elements of the state that a program holds, and its warps.
TILE, WARPS = 1024, 2
# The widest state whose row fits such a tile.
MOST_STATES = 1024


def selective_state_update(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Arguments as in `transmamba_kernels.selective_state_update`; y (B, D)."""
    if state.numel() == 0 or A.shape[1] > MOST_STATES:
        return cpu.selective_state_update(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    step = _step_op if torch.compiler.is_compiling() else _step
    return step(state, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    u, delta, B, C, z = rows(u), rows(delta), rows(B), rows(C), None if z is None else rows(z)
    (batch, channels), states = u.shape, A.shape[1]
    groups = B.shape[1] if B.dim() == 3 else 1
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    padded = power_of_2(states)
    block = max(TILE // padded, 1)
    grid = (cdiv(channels, block) * batch,)
    with on_device_of(u):
        step_kernel[grid](
            state,
            u,
            delta,
            A,
            B,
            C,
            None if D is None else D.contiguous(),
            z,
            None if delta_bias is None else delta_bias.contiguous(),
            y,
            channels,
            states,
            channels // groups,
            *state.stride(),
            u.stride(0),
            delta.stride(0),
            0 if z is None else z.stride(0),
            *A.stride(),
            B.stride(0),
            B.stride(1) if B.dim() == 3 else 0,
            C.stride(0),
            C.stride(1) if C.dim() == 3 else 0,
            BD=block,
            NP=padded,
            GROUPED=groups > 1,
            SOFTPLUS=delta_softplus,
            num_warps=WARPS,
            **FUSED,
        )
    return y


_step_op = torch.library.custom_op(
    "transmamba::selective_state_update_triton",
    _step,
    mutates_args=("state",),
    schema="(Tensor(a!) state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool delta_softplus) -> Tensor",
)
_step_op.register_fake(lambda state, u, *rest: u.new_empty(u.shape))
