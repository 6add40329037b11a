"""Experts in plain PyTorch against all experts for all tokens in float64."""

from __future__ import annotations

import expert_inputs
import pytest
import torch
from transmamba_kernels import grouped_experts

KINDS = [
    dict(activation="relu"),
    dict(each=2, activation="silu", gated=True),
    dict(each=3, activation="silu"),
    dict(each=2, activation="relu", gated=True),
    dict(crowd=1),
    dict(width=7, neurons=9, each=2),  # of rows that torch's grouped product does not take
]


@pytest.mark.parametrize("path", ["cpu", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_all_experts_weighed(agree, monkeypatch, path, kind):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", path)
    given = expert_inputs.arguments(20, **{"width": 8, "neurons": 16, **kind})
    agree(grouped_experts, expert_inputs.truth, given)
    agree(grouped_experts, expert_inputs.truth, given, torch.float64, 1e-12, 1e-12)


@pytest.mark.parametrize("path", ["cpu", "reference"])
def test_in_bfloat16_they_are_near(agree, monkeypatch, path):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", path)
    given = expert_inputs.arguments(20, width=8, neurons=16, each=2, activation="silu", gated=True)
    agree(grouped_experts, expert_inputs.truth, given, torch.bfloat16, 1e-2, 2e-2)


def test_autocast_changes_nothing():
    given = expert_inputs.arguments(20, width=7, neurons=9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grouped_experts(**given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, grouped_experts(**given))


def test_matrices_are_brought_to_the_tokens_dtype():
    given = expert_inputs.arguments(20, width=8, neurons=16)
    given["x"] = given["x"].bfloat16()
    given["up"].requires_grad_()
    found = grouped_experts(**given)
    found.float().sum().backward()
    assert found.dtype == torch.bfloat16 and given["up"].grad.dtype == torch.float32


def test_no_tokens_are_no_experts(agree):
    agree(grouped_experts, expert_inputs.truth, expert_inputs.arguments(0, width=8, neurons=16))


@pytest.mark.parametrize("change, message", [
    (dict(activation="gelu"), "activation: 'gelu', expected 'relu' or 'silu'"),
    (dict(gated=True), r"up: shape .*, expected \(E, 2 F, D\)"),
    (dict(chosen=torch.zeros(20, 1)), "chosen: dtype torch.float32"),
    (dict(chosen=torch.zeros(19, 1, dtype=torch.int64)), r"chosen: shape \(19, 1\)"),
    (dict(weights=torch.zeros(20, 2)), r"weights: shape \(20, 2\), expected \(N, k\) = \(20, 1\)"),
    (dict(down=torch.zeros(5, 9, 16)), r"down: shape .*, expected \(E, D, F\)"),
    (dict(x=torch.zeros(2, 20, 8)), r"x: shape .*, expected \(N, D\)"),
])  # fmt: skip
def test_what_does_not_fit_is_named(change, message):
    given = expert_inputs.arguments(20, width=8, neurons=16)
    with pytest.raises(ValueError, match=message):
        grouped_experts(**{**given, **change})
