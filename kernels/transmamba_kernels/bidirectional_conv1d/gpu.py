"""Both convolutions in Triton: one launch forward, one and small sums backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..causal_conv1d.gpu import MOST_TAPS
from ..causal_conv1d.launch import run_backward, run_forward
from ..torch_ops import Operator, Outputs, nothing
from . import cpu


def bidirectional_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_b: Tensor,
    bias_b: Tensor | None,
    activation: str | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Arguments as in `transmamba_kernels.bidirectional_conv1d`; y and y_b (B, L, D)."""
    if x.numel() == 0 or weight.shape[1] > MOST_TAPS:
        return cpu.bidirectional_conv1d(x, weight, bias, weight_b, bias_b, activation, seq_idx, lengths)
    y, y_b = CONVS(x, weight, bias, weight_b, bias_b, seq_idx, lengths, activation == "silu")
    return y, y_b


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_b: Tensor,
    bias_b: Tensor | None,
    seq_idx: Tensor | None,
    lengths: Tensor | None,
    silu: bool,
) -> Outputs:
    filters = (weight, bias, weight_b, bias_b)
    y, y_b, _ = run_forward(x, filters, None, seq_idx, lengths, silu, reverse=False, final=False)
    assert y_b is not None
    return y, y_b


def _backward(grads: Outputs, tensors: tuple[Any, ...], saved: Outputs, flags: tuple[Any, ...]) -> Outputs:
    x, *filters, seq_idx, lengths = tensors
    dx, _, found = run_backward(
        x,
        tuple(filters),
        None,
        seq_idx,
        lengths,
        (grads[0], grads[1], None),
        silu=flags[0],
        reverse=False,
    )
    return (dx, *found, nothing(x), nothing(x))


def _fake(x: Tensor, *rest: Any) -> Outputs:
    return x.new_empty(x.shape), x.new_empty(x.shape)


CONVS = Operator(
    "bidirectional_conv1d_triton",
    "Tensor x, Tensor weight, Tensor? bias, Tensor weight_b, Tensor? bias_b, Tensor? seq_idx, "
    "Tensor? lengths, bool silu",
    visible=2,
    forward=_forward,
    backward=_backward,
    fake=_fake,
    saved=0,
)
