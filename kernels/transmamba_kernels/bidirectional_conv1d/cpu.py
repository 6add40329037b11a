"""Both convolutions by `causal_conv1d.cpu`, one after the other."""

from __future__ import annotations

from torch import Tensor

from ..causal_conv1d.cpu import causal_conv1d


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
    y, _ = causal_conv1d(x, weight, bias, activation, None, False, seq_idx, lengths, False)
    y_b, _ = causal_conv1d(x, weight_b, bias_b, activation, None, True, seq_idx, lengths, False)
    return y, y_b
