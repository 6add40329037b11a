"""One token of a Mamba-2 mixer in Triton: three launches, which a CUDA graph can hold.

One launch, a program a head with its channels of the convolution and of the norm, was as good or slower on an
H200: what is in one program then waits for one another, and few fit beside each other (docs/kernels.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..causal_conv1d.gpu import MOST_TAPS
from ..causal_conv1d.kernels import update_kernel
from ..rms_norm import gpu as norm
from ..ssd_state_update import gpu as scan
from ..triton_common import FUSED, cdiv, on_device_of, rows
from . import cpu


def mamba2_step(
    projected: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    eps: float,
    group_size: int,
) -> Tensor:
    """Arguments as in `transmamba_kernels.mamba2_step`; y (B, H P)."""
    tensors = (projected, conv_state, state, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight)
    taps = max(conv_weight.shape[1], conv_state.shape[2])
    if state.numel() == 0 or taps > MOST_TAPS or state.shape[3] > scan.MOST_STATES:
        names = ("projected", "conv_state", "state", "conv_weight", "conv_bias", "dt_bias", "A_log", "D")
        given = dict(zip((*names, "norm_weight"), tensors, strict=True))
        return cpu.mamba2_step(**given, eps=eps, group_size=group_size)
    return (_step_op if torch.compiler.is_compiling() else _step)(*tensors, eps, group_size)


def _step(
    projected: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    eps: float,
    group_size: int,
) -> Tensor:
    projected = rows(projected)
    (batch, heads, width, states), (channels, taps) = state.shape, conv_weight.shape
    inner = heads * width
    groups = (channels - inner) // (2 * states)
    convolved = torch.empty(batch, channels, dtype=torch.float32, device=projected.device)
    with on_device_of(projected):
        update_kernel[(cdiv(channels, 128) * batch,)](
            projected[:, inner:],
            conv_state,
            conv_weight.contiguous(),
            None if conv_bias is None else conv_bias.contiguous(),
            convolved,
            channels,
            projected.stride(0),
            *conv_state.stride(),
            K=taps,
            S=conv_state.shape[2],
            BD=128,
            SILU=True,
            num_warps=4,
            **FUSED,
        )
    x, B, C = convolved.split([inner, groups * states, groups * states], dim=1)
    y = scan.launch(
        state,
        x.view(batch, heads, width),
        projected[:, inner + channels :],
        A_log,
        B.view(batch, groups, states),
        C.view(batch, groups, states),
        D,
        None,
        dt_bias,
        delta_softplus=True,
        log=True,
        dtype=projected.dtype,
    )
    return norm.rms_norm(y.view(batch, inner), norm_weight, eps, projected[:, :inner], group_size)


_step_op = torch.library.custom_op(
    "transmamba::mamba2_step_triton",
    _step,
    mutates_args=("conv_state", "state"),
    schema="(Tensor projected, Tensor(a!) conv_state, Tensor(b!) state, Tensor conv_weight, "
    "Tensor? conv_bias, Tensor dt_bias, Tensor A_log, Tensor D, Tensor norm_weight, float eps, "
    "int group_size) -> Tensor",
)
_step_op.register_fake(
    lambda projected, conv_state, state, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, *rest: (
        projected.new_empty(
            (len(projected), norm_weight.shape[0]),
            dtype=torch.promote_types(projected.dtype, norm_weight.dtype),
        )
    )
)
