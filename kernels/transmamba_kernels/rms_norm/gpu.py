"""The norm in Triton: one launch, a program a row and group."""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton_common import FUSED, on_device_of, power_of_2, rows
from . import reference
from .kernels import norm_kernel

# The widest group that a program takes, 16 warps of 32 channels a thread.
MOST_CHANNELS = 16384


def rms_norm(x: Tensor, weight: Tensor, eps: float, gate: Tensor | None, group_size: int) -> Tensor:
    """Arguments as in `transmamba_kernels.rms_norm`; y (..., D)."""
    if x.numel() == 0 or group_size > MOST_CHANNELS:
        return reference.rms_norm(x, weight, eps, gate, group_size)
    norm = _norm_op if torch.compiler.is_compiling() else _norm
    return norm(x, weight, gate, eps, group_size)


def _norm(x: Tensor, weight: Tensor, gate: Tensor | None, eps: float, group_size: int) -> Tensor:
    channels = x.shape[-1]
    flat = rows(x.reshape(-1, channels))
    gates = None if gate is None else rows(gate.reshape(-1, channels))
    y = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
    block = power_of_2(group_size)
    groups = channels // group_size
    with on_device_of(x):
        norm_kernel[(len(flat) * groups,)](
            flat,
            gates,
            weight.contiguous(),
            y,
            groups,
            group_size,
            eps,
            flat.stride(0),
            0 if gates is None else gates.stride(0),
            BD=block,
            num_warps=min(max(block // 512, 1), 16),
            **FUSED,
        )
    return y


_norm_op = torch.library.custom_op(
    "transmamba::rms_norm_triton",
    _norm,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? gate, float eps, int group_size) -> Tensor",
)
_norm_op.register_fake(
    lambda x, weight, *rest: x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, weight.dtype))
)
