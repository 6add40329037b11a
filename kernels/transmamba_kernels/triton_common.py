"""What several Triton kernels share: the sigmoid family and softplus in float32. Imports triton."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
# For every launch: newer Triton no longer fuses multiplications with additions unless it is told to.
FUSED = {"enable_fp_fusion": True}


@triton.jit
def sigmoid(x):
    # rsqrt squared instead of a division: one special-function result and no range reduction; e^-x = inf
    # gives 0.
    root = tl.rsqrt(1.0 + tl.exp2(-x * LOG2E))
    return root * root


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """The derivative of silu."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def softplus(x):
    # log(1 + e) loses e's digits where e is small; Kahan's quotient gives them back. Behind 20 it is x.
    e = tl.exp2(tl.minimum(x, 20.0) * LOG2E)
    w = 1.0 + e
    small = tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))
    return tl.where(x > 20.0, x, small)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def rows(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension contiguous, as the kernels read it."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


# triton's own cdiv and next_power_of_2 are functions for kernels too: called from Python they take
# 4 microseconds, and a backward made thirty calls.


def cdiv(count: int, size: int) -> int:
    return -(-count // size)


def power_of_2(count: int) -> int:
    """The smallest that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()
