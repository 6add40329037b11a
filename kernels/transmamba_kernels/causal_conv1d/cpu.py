"""The causal convolution as K shifted multiply-adds in one operator, channels last throughout.

Measured on a CPU, forward and backward, this is about four times as fast as F.conv1d on the transposed
tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype
from ..packing import real_tokens, segments, zero_padding
from ..torch_ops import Operator, Outputs, differentiable, nothing
from . import reference


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
    length, taps = x.shape[1], weight.shape[1]
    real = real_tokens(length, seq_idx, lengths)
    final = None
    if return_final_state:
        final = final_state(x, initial_state, taps, seq_idx, lengths, reverse)
    x = zero_padding(x, real)
    inputs, ids = x, segments(seq_idx, lengths, reverse)
    if initial_state is not None:
        inputs, ids = _extended(x, initial_state, taps, ids, lengths, reverse)
    keep = differentiable(inputs, weight, bias)
    (y,) = CONV(inputs, weight, bias, ids, activation == "silu", reverse, keep)
    if initial_state is not None:
        y = (y[:, :length] if reverse else y[:, taps - 1 :]).to(x.dtype)
    return zero_padding(y, real), final


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> Tensor:
    """Arguments as in `transmamba_kernels.causal_conv1d_update`; y (B, D)."""
    return reference.causal_conv1d_update(x, state, weight, bias, activation)


def _extended(
    x: Tensor,
    initial_state: Tensor | None,
    taps: int,
    sequence: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor | None]:
    """(B, L + K - 1, D): the tokens, and in front of the first (behind the last real one) those of the state;
    (B, L + K - 1): their sequences, the state's tokens in that of the token next to them."""
    batch, length, channels = x.shape
    if initial_state is None:
        past = x.new_zeros(batch, taps - 1, channels)
    else:
        past = initial_state.transpose(1, 2)
        dtype = torch.promote_types(x.dtype, past.dtype)
        x, past = x.to(dtype), past.to(dtype)
    ids = None
    if not reverse:
        if sequence is not None:
            ids = F.pad(sequence, (taps - 1, 0))  # the first sequence is number 0
        return torch.cat([past, x], dim=1), ids
    if sequence is not None:
        # Padding has the number of the last real token, so the state may stand in it or behind it.
        ids = torch.cat([sequence, sequence[:, -1:].expand(-1, taps - 1)], dim=1) if length else None
    tokens = torch.cat([x, past.flip(1)], dim=1)
    if lengths is not None:
        # What stands behind the real tokens is the state, then zeros.
        ends = lengths.clamp(max=length).unsqueeze(1)
        place = torch.arange(length + taps - 1, device=x.device) - ends
        source = torch.where(place < 0, place + ends, place + length)
        beyond = place >= taps - 1
        source = source.masked_fill(beyond, 0).unsqueeze(-1).expand(-1, -1, channels)
        tokens = tokens.gather(1, source).masked_fill(beyond.unsqueeze(-1), 0)
    return tokens, ids


def final_state(
    x: Tensor,
    initial_state: Tensor | None,
    taps: int,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
) -> Tensor:
    """(B, D, K-1) in x's dtype, oldest first: the window in which the sequence that is met last ends."""
    real, ids = real_tokens(x.shape[1], seq_idx, lengths), segments(seq_idx, lengths, reverse)
    tokens, ids = _extended(zero_padding(x, real), initial_state, taps, ids, lengths, reverse)
    last = slice(0, 1) if reverse else slice(-1, None)  # padding has the number of what was met before it
    if real is None:
        begin = 0 if reverse else tokens.shape[1] - (taps - 1)
        state = tokens[:, begin : begin + taps - 1]
        same = None if ids is None else ids[:, begin : begin + taps - 1] == ids[:, last]
    else:
        steps = torch.arange(taps - 1, device=x.device) + window_begin(real, lengths, reverse).unsqueeze(1)
        state = tokens.gather(1, steps.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        same = None if ids is None else ids.gather(1, steps) == ids[:, last]
    if same is not None:
        state = state.masked_fill(~same.unsqueeze(-1), 0)
    state = state.flip(1) if reverse else state
    return state.transpose(1, 2).to(x.dtype).contiguous()


def window_begin(real: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """(B,): where that window begins among the tokens that `_extended` gives: behind the padding that is met
    last. real: (B, L). A row of padding alone ends in the window that it began with.
    """
    length = real.shape[1]
    places = torch.arange(length, device=real.device)
    if not reverse:
        return F.pad(real * (places + 1), (1, 0)).amax(1)
    ends = torch.full((len(real), 1), length, device=real.device)
    if lengths is not None:
        ends = lengths.long().clamp(max=length).unsqueeze(1)
    return torch.cat([torch.where(real, places, ends), ends], dim=1).amin(1)


def _shifts(length: int, taps: int, reverse: bool) -> list[tuple[int, slice, slice]]:
    """(tap, outputs, inputs): y[:, outputs] takes weight[:, tap] x[:, inputs]; the unshifted tap first."""
    found = []
    for shift in range(min(taps, length)):
        ahead, behind = slice(shift, length), slice(0, length - shift)
        found.append((taps - 1 - shift, behind, ahead) if reverse else (taps - 1 - shift, ahead, behind))
    return found


def _same(ids: Tensor, outputs: slice, inputs: slice) -> Tensor:
    return (ids[:, outputs] == ids[:, inputs]).unsqueeze(-1)


def _wide(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype`, channels innermost in memory."""
    tensor = tensor.to(dtype)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None, silu: bool, reverse: bool, keep: bool
) -> Outputs:
    """y, and what the activation was applied to where the backward needs it."""
    dtype = compute_dtype(x, weight, bias)
    wide, columns = _wide(x, dtype), weight.to(dtype).T.contiguous()
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if bias is None:
        torch.mul(wide, columns[-1], out=y)
    else:
        torch.addcmul(bias.to(dtype), wide, columns[-1], out=y)
    for tap, outputs, inputs in _shifts(x.shape[1], len(columns), reverse)[1:]:
        source = wide[:, inputs] if ids is None else wide[:, inputs] * _same(ids, outputs, inputs)
        y[:, outputs].addcmul_(source, columns[tap])
    if not silu:
        return y.to(x.dtype), nothing(y)
    return F.silu(y).to(x.dtype), y if keep else nothing(y)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor | None, silu: bool, reverse: bool, keep: bool
) -> Outputs:
    dtype = compute_dtype(x, weight, bias)
    return x.new_empty(x.shape), x.new_empty(x.shape if silu and keep else (0,), dtype=dtype)


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    (grad,), (x, weight, bias, ids), (before,), (silu, reverse, _) = grads, tensors, saved, flags
    dtype = compute_dtype(x, weight, bias)
    wide, columns, grad = _wide(x, dtype), weight.to(dtype).T.contiguous(), grad.to(dtype)
    if silu:
        grad = torch.ops.aten.silu_backward(grad, before)
    grad_x = torch.empty(x.shape, dtype=dtype, device=x.device)
    torch.mul(grad, columns[-1], out=grad_x)
    grad_columns = torch.zeros_like(columns)
    for tap, outputs, inputs in _shifts(x.shape[1], len(columns), reverse):
        part = grad[:, outputs]
        if tap != len(columns) - 1:
            part = part if ids is None else part * _same(ids, outputs, inputs)
            grad_x[:, inputs].addcmul_(part, columns[tap])
        grad_columns[tap] = (part * wide[:, inputs]).sum((0, 1))
    grad_bias = nothing(x) if bias is None else grad.sum((0, 1)).to(bias.dtype)
    return grad_x.to(x.dtype), grad_columns.T.to(weight.dtype).contiguous(), grad_bias, nothing(x)


CONV = Operator(
    "causal_conv1d",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? ids, bool silu, bool reverse, bool keep",
    1,
    _forward,
    _backward,
    _fake,
    1,
)
