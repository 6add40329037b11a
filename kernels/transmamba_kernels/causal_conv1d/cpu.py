"""The causal convolution as K shifted multiply-adds in one autograd Function, channels last throughout.

Measured on a CPU, forward and backward, this is about four times as fast as F.conv1d on the transposed
tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backend import compute_dtype


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    reverse: bool,
) -> Tensor:
    """Arguments as in `transmamba_kernels.causal_conv1d`; y (B, L, D)."""
    if initial_state is None:
        return CausalConv.apply(x, weight, bias, activation, reverse)
    past, length = initial_state.transpose(1, 2).to(x.dtype), x.shape[1]
    if reverse:
        padded = torch.cat([x, past.flip(1)], dim=1)
        return CausalConv.apply(padded, weight, bias, activation, True)[:, :length]
    padded = torch.cat([past, x], dim=1)
    return CausalConv.apply(padded, weight, bias, activation, False)[:, padded.shape[1] - length :]


def _shifts(length: int, taps: int, reverse: bool) -> list[tuple[int, slice, slice]]:
    """(tap, outputs, inputs): y[:, outputs] takes weight[:, tap] x[:, inputs]; the unshifted tap first."""
    found = []
    for shift in range(min(taps, length)):
        ahead, behind = slice(shift, length), slice(0, length - shift)
        found.append((taps - 1 - shift, behind, ahead) if reverse else (taps - 1 - shift, ahead, behind))
    return found


class CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, reverse: bool
    ) -> Tensor:
        dtype = compute_dtype(x, weight, bias)
        wide, columns = x.to(dtype), weight.to(dtype).T.contiguous()
        y = wide * columns[-1] if bias is None else torch.addcmul(bias.to(dtype), wide, columns[-1])
        for tap, outputs, inputs in _shifts(x.shape[1], len(columns), reverse)[1:]:
            y[:, outputs].addcmul_(wide[:, inputs], columns[tap])
        ctx.reverse, ctx.has_bias, ctx.dtype = reverse, bias is not None, dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, y if activation else None)
        return (F.silu(y) if activation else y).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, before = ctx.saved_tensors
        wide, columns, grad = x.to(ctx.dtype), weight.to(ctx.dtype).T.contiguous(), grad.to(ctx.dtype)
        if before is not None:
            grad = torch.ops.aten.silu_backward(grad, before)
        grad_x = grad * columns[-1]
        grad_columns = torch.zeros_like(columns)
        for tap, outputs, inputs in _shifts(x.shape[1], len(columns), ctx.reverse):
            if tap != len(columns) - 1:
                grad_x[:, inputs].addcmul_(grad[:, outputs], columns[tap])
            grad_columns[tap] = (grad[:, outputs] * wide[:, inputs]).sum((0, 1))
        grad_bias = grad.sum((0, 1)).to(ctx.bias_dtype) if ctx.has_bias else None
        return grad_x.to(x.dtype), grad_columns.T.to(weight.dtype), grad_bias, None, None
