"""The causal convolution in Triton: one launch forward, one and two small sums backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..packing import real_tokens
from ..torch_ops import Operator, Outputs, nothing, or_nothing
from ..triton_common import FUSED, cdiv, on_device_of, rows
from . import cpu
from .kernels import update_kernel
from .launch import run_backward, run_forward

# Wider filters unroll into more registers than a thread has; they take the PyTorch path.
MOST_TAPS = 8


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    reverse: bool,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as in `transmamba_kernels.causal_conv1d`; y (B, L, D), final state (B, D, K-1) or None."""
    taps = weight.shape[1]
    if x.numel() == 0 or taps > MOST_TAPS:
        return cpu.causal_conv1d(
            x, weight, bias, activation, initial_state, reverse, seq_idx, lengths, return_final_state
        )
    if taps == 1:
        initial_state = None
    final = return_final_state and taps > 1
    by_kernel = final and (seq_idx is None or not reverse)
    if by_kernel and seq_idx is not None:
        # The kernel takes the window in front of `lengths`: so be it where the last padding begins.
        real = real_tokens(x.shape[1], seq_idx, lengths)
        assert real is not None
        lengths = cpu.window_begin(real, lengths, reverse)
    y, state = CONV(
        x, weight, bias, initial_state, seq_idx, lengths, activation == "silu", reverse, by_kernel
    )
    if not return_final_state:
        return y, None
    if final and not by_kernel:
        state = cpu.final_state(x, initial_state, taps, seq_idx, lengths, reverse)
    return y, state if final else x.new_empty(x.shape[0], x.shape[2], 0)


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Arguments as in `transmamba_kernels.causal_conv1d_update`; y (B, D)."""
    if x.numel() == 0 or max(weight.shape[1], state.shape[2]) > MOST_TAPS:
        return cpu.causal_conv1d_update(x, state, weight, bias, activation)
    update = _update_op if torch.compiler.is_compiling() else _update
    return update(x, state, weight, bias, activation == "silu")


def _update(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return launch_update(x, state, weight, bias, silu, x.dtype)


def launch_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, dtype: torch.dtype
) -> Tensor:
    """y (B, D), of `dtype`."""
    x, weight = rows(x), weight.contiguous()
    (batch, channels), taps = x.shape, weight.shape[1]
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    block = 128
    with on_device_of(x):
        update_kernel[(cdiv(channels, block) * batch,)](
            x,
            state,
            weight,
            None if bias is None else bias.contiguous(),
            y,
            channels,
            x.stride(0),
            *state.stride(),
            K=taps,
            S=state.shape[2],
            BD=block,
            SILU=silu,
            num_warps=4,
            **FUSED,
        )
    return y


_update_op = torch.library.custom_op(
    "transmamba::causal_conv1d_update_triton",
    _update,
    mutates_args=("state",),
    schema="(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, bool silu) -> Tensor",
)
_update_op.register_fake(lambda x, state, weight, bias, silu: x.new_empty(x.shape))


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
    reverse: bool,
    final: bool,
) -> Outputs:
    y, _, state = run_forward(
        x, (weight, bias, None, None), initial_state, seq_idx, lengths, silu, reverse, final
    )
    return y, or_nothing(state, x)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    x, weight, bias, initial_state, seq_idx, lengths = tensors
    silu, reverse, final = flags
    dx, dinitial, (dweight, dbias) = run_backward(
        x,
        (weight, bias, None, None),
        initial_state,
        seq_idx,
        lengths,
        (grads[0], None, grads[1] if final else None),
        silu,
        reverse,
    )
    return dx, dweight, dbias, or_nothing(dinitial, x), nothing(x), nothing(x)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
    reverse: bool,
    final: bool,
) -> Outputs:
    state = x.new_empty(x.shape[0], x.shape[2], weight.shape[1] - 1) if final else nothing(x)
    return x.new_empty(x.shape), state


CONV = Operator(
    "causal_conv1d_triton",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? seq_idx, Tensor? lengths, "
    "bool silu, bool reverse, bool final",
    visible=2,
    forward=_forward,
    backward=_backward,
    fake=_fake,
    saved=0,
)
