"""Gradients of A and the step sizes where decays are strong: nothing passes over such a step, so nothing may
be left of the pairs on its two sides."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from conftest import evaluate
from ssd_inputs import loop, make, two_loops
from torch import Tensor
from transmamba_kernels import bidirectional_ssd, ssd_scan
from transmamba_kernels.ssd_scan.decay import spanned, spanned_both_ways

Arguments = dict[str, Any]


def strong(scale: float, strongest: float) -> Arguments:
    """Steps softplus(N(0, scale^2)), of which many forget everything; A from -1 to -`strongest`."""
    arguments = make(150, heads=4)
    arguments["delta"] = torch.randn(arguments["delta"].shape, dtype=torch.float64) * scale
    arguments["A"] = -torch.linspace(1, strongest, 4, dtype=torch.float64)
    return arguments | {"delta_softplus": True}


def assert_gradients(op: Any, truth: Any, arguments: Arguments) -> None:
    """Ten times as near as docs/kernels.md promises of float32, of A too, which the steps multiply."""
    rounded = {
        n: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in arguments.items()
    }
    found, expected = evaluate(op, rounded, torch.float32), evaluate(truth, rounded, torch.float64)
    for name, right in expected.items():
        error = float((found[name] - right).norm() / right.norm())
        assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize(("scale", "strongest"), [(1, 16), (10, 16), (100, 16), (100, 1), (1000, 1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_one_way(scale, strongest, reverse):
    torch.manual_seed(0)
    state = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    arguments = strong(scale, strongest) | {"initial_state": state, "reverse": reverse}
    assert_gradients(ssd_scan, loop, arguments | {"return_final_state": True})


@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
@pytest.mark.parametrize("scale", [1, 100, 1000])
def test_both_ways(scale, limit):
    torch.manual_seed(0)
    arguments = strong(scale, 1 if scale == 1000 else 16)
    arguments |= {"A_b": arguments["A"].flip(0), "delta_b": arguments["delta"].flip(1)}
    assert_gradients(bidirectional_ssd, two_loops, arguments | {"quadratic_limit": limit})


def test_packed_sequences():
    torch.manual_seed(0)
    ids = torch.tensor([0] * 40 + [1] * 30 + [2] * 80).expand(2, -1)
    assert_gradients(partial(ssd_scan, seq_idx=ids), partial(loop, seq_idx=ids), strong(100, 16))


@pytest.mark.parametrize("length", [0, 1, 2, 16, 37])
def test_pairs_that_a_step_lies_between(length):
    """By brute force; the diagonal lies under no step."""
    pairs = torch.randn(2, 3, length, length, dtype=torch.float64)
    ahead, back = pairs.new_zeros(2, 2, 3, length)
    for j in range(length):
        ahead[..., j] = pairs[..., j:, :j].sum((-1, -2))
        back[..., j] = pairs[..., : j + 1, j + 1 :].sum((-1, -2))
    torch.testing.assert_close(spanned(pairs), ahead)
    torch.testing.assert_close(spanned_both_ways(pairs), (ahead, back))
