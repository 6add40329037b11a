"""The gate of an MLP in Triton: one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton_common import FUSED, cdiv, on_device_of, rows
from . import reference
from .kernels import gate_kernel

# Channels of a program of four warps.
BLOCK = 1024


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Arguments as in `transmamba_kernels.silu_mul`; y (..., D)."""
    if gate.numel() == 0 or gate.dim() == 0:
        return reference.silu_mul(gate, up)
    return (_gated_op if torch.compiler.is_compiling() else _gated)(gate, up)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    channels = gate.shape[-1]
    gates, ups = rows(gate.reshape(-1, channels)), rows(up.reshape(-1, channels))
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    with on_device_of(gate):
        gate_kernel[(cdiv(channels, BLOCK) * len(gates),)](
            gates, ups, y, channels, gates.stride(0), ups.stride(0), BD=BLOCK, num_warps=4, **FUSED
        )
    return y


_gated_op = torch.library.custom_op(
    "transmamba::silu_mul_triton", _gated, mutates_args=(), schema="(Tensor gate, Tensor up) -> Tensor"
)
_gated_op.register_fake(lambda gate, up: gate.new_empty(gate.shape))
