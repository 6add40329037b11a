"""One token of the SSD scan in Triton: one launch, which a CUDA graph can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton_common import FUSED, cdiv, on_device_of, power_of_2, rows
from . import cpu
from .kernels import step_kernel

# Elements of the state that a program of one warp holds.
TILE = 512
# The widest state whose row a program takes.
MOST_STATES = 4096


def ssd_state_update(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Arguments as in `transmamba_kernels.ssd_state_update`; y (B, H, P)."""
    if state.numel() == 0 or B.shape[2] > MOST_STATES:
        return cpu.ssd_state_update(state, x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    step = _step_op if torch.compiler.is_compiling() else _step
    return step(state, x, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    return launch(state, x, delta, A, B, C, D, z, delta_bias, delta_softplus=delta_softplus, dtype=x.dtype)


def launch(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    *,
    delta_softplus: bool,
    dtype: torch.dtype,
    log: bool = False,
) -> Tensor:
    """y (B, H, P), of `dtype`. log: A is log(-A), as a mixer holds it."""
    x, B, C, z = rows(x), rows(B), rows(C), None if z is None else rows(z)
    (batch, heads, width), (groups, states) = x.shape, B.shape[1:]
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    padded = power_of_2(states)
    block = max(min(TILE // padded, power_of_2(width)), 1)
    skip = (0, 0) if D is None else (D.stride(0), D.stride(1) if D.dim() == 2 else 0)
    with on_device_of(x):
        step_kernel[(cdiv(width, block) * heads * batch,)](
            state,
            x,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            y,
            heads,
            width,
            states,
            heads // groups,
            *state.stride(),
            *x.stride()[:2],
            *delta.stride(),
            *((0, 0) if z is None else z.stride()[:2]),
            A.stride(0),
            *B.stride()[:2],
            *C.stride()[:2],
            *skip,
            0 if delta_bias is None else delta_bias.stride(0),
            BP=block,
            NP=padded,
            SOFTPLUS=delta_softplus,
            LOG=log,
            num_warps=max(1, padded // TILE),
            **FUSED,
        )
    return y


_step_op = torch.library.custom_op(
    "transmamba::ssd_state_update_triton",
    _step,
    mutates_args=("state",),
    schema="(Tensor(a!) state, Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool delta_softplus) -> Tensor",
)
_step_op.register_fake(lambda state, x, *rest: x.new_empty(x.shape))
