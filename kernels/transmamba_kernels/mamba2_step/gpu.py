"""One token of a Mamba-2 mixer in Triton: one launch, or up to three, which a CUDA graph can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..causal_conv1d.gpu import MOST_TAPS
from ..causal_conv1d.kernels import update_kernel
from ..early_launch import overlaps
from ..rms_norm import gpu as norm
from ..ssd_state_update.gpu import MOST_STATES, TILE
from ..triton_common import FUSED, cdiv, on_device_of, power_of_2, rows
from . import cpu
from .kernels import head_kernel

# The largest head of which one program has all; how much of it a program holds at a time, since with more no
# second program has room beside it; and its warps.
MOST_ELEMENTS = 16 * TILE
PART = 2 * TILE
WARPS = 8


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
    if state.numel() == 0 or taps > MOST_TAPS or state.shape[3] > MOST_STATES:
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
    projected, conv_weight = rows(projected), conv_weight.contiguous()
    conv_bias = None if conv_bias is None else conv_bias.contiguous()
    (batch, heads, width, states), (channels, taps) = state.shape, conv_weight.shape
    inner = heads * width
    groups = (channels - inner) // (2 * states)
    deep, wide = power_of_2(states), power_of_2(width)
    whole = deep * wide <= MOST_ELEMENTS
    alone, normed = whole and groups == heads and wide == deep, whole and group_size == width
    block = wide if alone or normed else max(min(TILE // deep, wide), 1)
    dtype = torch.promote_types(projected.dtype, norm_weight.dtype) if normed else projected.dtype
    y = torch.empty(batch, inner, dtype=dtype, device=projected.device)
    convolved = None
    with on_device_of(projected):
        if not alone:
            convolved = torch.empty(batch, channels, dtype=torch.float32, device=projected.device)
            update_kernel[(cdiv(channels, 128) * batch,)](
                projected[:, inner:],
                conv_state,
                conv_weight,
                conv_bias,
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
        head_kernel[(cdiv(width, block) * heads * batch,)](
            projected,
            convolved,
            conv_state,
            state,
            conv_weight,
            conv_bias,
            dt_bias.contiguous(),
            A_log.contiguous(),
            D.contiguous(),
            norm_weight.contiguous(),
            y,
            heads,
            width,
            states,
            heads // groups,
            channels,
            eps,
            projected.stride(0),
            0 if convolved is None else convolved.stride(0),
            *conv_state.stride(),
            *state.stride(),
            K=taps,
            S=conv_state.shape[2],
            BP=block,
            NP=deep,
            PARTS=max(block * deep // PART, 1),
            CONV=alone,
            NORM=normed,
            num_warps=min(max(block * deep // TILE, 1), WARPS),
            **overlaps(projected),
            **FUSED,
        )
    return y if normed else norm.rms_norm(y, norm_weight, eps, projected[:, :inner], group_size)


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
