"""Both convolutions at once against two token-by-token ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transmamba_kernels.bidirectional_conv1d import bidirectional_conv1d, reference
from transmamba_kernels.causal_conv1d import causal_conv1d


def make(length: int = 9, batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length)
    shapes = {"x": (batch, length, 5), "weight": (5, 4), "bias": (5,), "weight_b": (5, 4), "bias_b": (5,)}
    return {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}


def loop(**arguments: Any) -> Any:
    return reference.bidirectional_conv1d(**{"seq_idx": None, "lengths": None, **arguments})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("length", [1, 9])
def test_agrees_with_loop(agree, length, activation, packed):
    more: dict[str, Any] = {"activation": activation}
    if packed:
        more |= {"seq_idx": torch.arange(length).expand(2, -1) // 4, "lengths": torch.tensor([length, 1])}
    agree(bidirectional_conv1d, loop, {**make(length), **more})


def test_is_two_causal_convolutions():
    a = make()
    y, y_b = bidirectional_conv1d(**a, activation="silu")
    torch.testing.assert_close(y, causal_conv1d(a["x"], a["weight"], a["bias"], "silu"))
    expected = causal_conv1d(a["x"], a["weight_b"], a["bias_b"], "silu", reverse=True)
    torch.testing.assert_close(y_b, expected)


def test_empty_batch():
    y, y_b = bidirectional_conv1d(**make(batch=0))
    assert y.shape == y_b.shape == (0, 9, 5)


def test_wrong_arguments_are_named():
    a = make()
    with pytest.raises(ValueError, match=r"weight_b: shape \(5, 3\), expected \(D, K\) = \(5, 4\)"):
        bidirectional_conv1d(**{**a, "weight_b": a["weight_b"][:, :3]})
    with pytest.raises(ValueError, match=r"bias_b: shape \(4,\), expected \(D,\) = \(5,\)"):
        bidirectional_conv1d(**{**a, "bias_b": a["bias_b"][:4]})
    with pytest.raises(ValueError, match="activation: 'relu', expected None or 'silu'"):
        bidirectional_conv1d(**a, activation="relu")
    with pytest.raises(ValueError, match=r"seq_idx: dtype torch.float64, expected an integer type"):
        bidirectional_conv1d(**a, seq_idx=torch.zeros(2, 9, dtype=torch.float64))
