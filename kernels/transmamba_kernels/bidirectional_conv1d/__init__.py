"""The convolutions in front of Vim's two scans, which see the same tokens."""

from __future__ import annotations

from torch import Tensor

from ..backend import choose
from ..shapes import expect, expect_floating, expect_integers, expect_rank
from . import cpu, reference

__all__ = ["bidirectional_conv1d"]


def bidirectional_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_b: Tensor,
    bias_b: Tensor | None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, y_b): `causal_conv1d` of x with `weight` and `bias`, and reversed with `weight_b` and `bias_b`.

    x, y, y_b: (B, L, D), in the same order. weight, weight_b: (D, K). bias, bias_b: (D,). activation: None or
    "silu". `seq_idx` (B, L) and `lengths` (B,) as in `causal_conv1d`. Where Triton runs, x is read once
    forward, and dx is written once backward.

    Raises ValueError for a shape or dtype that does not fit, for tensors on several devices, and for an
    unknown activation.
    """
    expect_floating(x=x, weight=weight, bias=bias, weight_b=weight_b, bias_b=bias_b)
    expect_rank("x", x, "(B, L, D)")
    expect_rank("weight", weight, "(D, K)")
    (batch, length, channels), taps = x.shape, weight.shape[1]
    for name, filters in (("weight", weight), ("weight_b", weight_b)):
        expect(name, filters, "(D, K)", channels, taps)
    if taps < 1:
        raise ValueError("weight: shape (D, 0), expected (D, K) with K of at least 1")
    expect("bias", bias, "(D,)", channels)
    expect("bias_b", bias_b, "(D,)", channels)
    expect("seq_idx", seq_idx, "(B, L)", batch, length)
    expect("lengths", lengths, "(B,)", batch)
    if activation not in (None, "silu"):
        raise ValueError(f"activation: {activation!r}, expected None or 'silu'")
    expect_integers(x.device, seq_idx=seq_idx, lengths=lengths)
    path = choose("bidirectional_conv1d", x, weight, bias, weight_b, bias_b)
    if path == "triton":
        from . import gpu

        run = gpu.bidirectional_conv1d
    else:
        run = reference.bidirectional_conv1d if path == "reference" else cpu.bidirectional_conv1d
    return run(x, weight, bias, weight_b, bias_b, activation, seq_idx, lengths)
