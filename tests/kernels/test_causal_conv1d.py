"""The shifted multiply-adds against the token-by-token convolution and against F.conv1d."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transmamba_kernels import causal_conv1d
from transmamba_kernels.causal_conv1d import reference


def make(length: int, taps: int, names: tuple[str, ...] = (), batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length + taps)
    shapes = {
        "x": (batch, length, 5),
        "weight": (5, taps),
        "bias": (5,),
        "initial_state": (batch, 5, taps - 1),
    }
    return {
        n: torch.randn(*shapes[n], generator=generator, dtype=torch.float64) for n in ("x", "weight", *names)
    }


def loop(**arguments: Any) -> torch.Tensor:
    full: dict[str, Any] = dict.fromkeys(("bias", "activation", "initial_state"))
    return reference.causal_conv1d(**{**full, "reverse": False, **arguments})


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("names", [(), ("bias",), ("bias", "initial_state")])
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (17, 4), (20, 3), (6, 1)])
def test_agrees_with_loop(agree, length, taps, names, activation, reverse):
    agree(causal_conv1d, loop, make(length, taps, names) | {"activation": activation, "reverse": reverse})


def test_equals_torch_conv1d():
    a = make(17, 4, ("bias",))
    padded = F.conv1d(a["x"].transpose(1, 2), a["weight"][:, None], a["bias"], padding=3, groups=5)
    torch.testing.assert_close(causal_conv1d(**a), padded[..., :17].transpose(1, 2))


def test_reverse_is_flip_of_forward_of_flip():
    a = make(17, 4, ("bias", "initial_state"))
    expected = causal_conv1d(**{**a, "x": a["x"].flip(1)}).flip(1)
    torch.testing.assert_close(causal_conv1d(**a, reverse=True), expected)


def test_split_in_two_equals_whole():
    a = make(17, 4, ("bias",))
    first = causal_conv1d(**{**a, "x": a["x"][:, :9]})
    state = a["x"][:, 6:9].transpose(1, 2)
    second = causal_conv1d(**{**a, "x": a["x"][:, 9:]}, initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), causal_conv1d(**a))


def test_gradcheck_non_contiguous():
    a = make(8, 4, ("bias", "initial_state"))
    x = a["x"].transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    leaves = (x, *(a[n].requires_grad_() for n in ("weight", "bias", "initial_state")))
    assert torch.autograd.gradcheck(
        lambda x, w, b, s: causal_conv1d(x, w, b, "silu", s), leaves, fast_mode=True
    )


def test_half_precision(agree):
    arguments = make(17, 4, ("bias",)) | {"activation": "silu"}
    agree(causal_conv1d, loop, arguments, torch.bfloat16, forward=1e-2, gradients=1e-2)
    assert causal_conv1d(*(arguments[n].bfloat16() for n in ("x", "weight", "bias"))).dtype == torch.bfloat16


def test_empty_batch():
    assert causal_conv1d(**make(17, 4, batch=0)).shape == (0, 17, 5)


def test_wrong_arguments_are_named():
    a = make(17, 4)
    with pytest.raises(ValueError, match=r"weight: shape \(4, 4\), expected \(D, K\) = \(5, 4\)"):
        causal_conv1d(a["x"], a["weight"][:4])
    with pytest.raises(ValueError, match=r"initial_state: shape \(2, 5, 4\), expected \(B, D, K-1\)"):
        causal_conv1d(**a, initial_state=torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="activation: 'relu', expected None or 'silu'"):
        causal_conv1d(**a, activation="relu")
