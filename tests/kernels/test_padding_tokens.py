"""Tokens of a negative id are skipped: as if each sequence stood alone, and no state moved on the padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_packing import CASES, LENGTH, PACKED, normal, of_conv, rows
from torch import Tensor
from transmamba_kernels import bidirectional_conv1d

IDS = torch.tensor([[-1, -1, 0, 0, 0, -1, 0, 0, 7, -3, -1]])
SEQUENCES = [slice(2, 5), slice(6, 8), slice(8, 9)]
PADDING = [0, 1, 5, 9, 10]


def of_both_convs(batch: int) -> dict[str, Any]:
    a = of_conv(batch)
    return a | {"weight_b": a["weight"].flip(1), "bias_b": a["bias"].flip(0)}


ALL = {name: CASES[name] for name in PACKED}
ALL["bidirectional_conv1d"] = (bidirectional_conv1d, of_both_convs, {})
WITH_STATES = [name for name in ALL if not name.startswith("bidirectional")]


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def path(request, monkeypatch):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", request.param)


def run(op: Any, arguments: dict[str, Any], tokens: slice | None = None) -> tuple[Tensor, ...]:
    """The outputs by token, of some tokens alone where they are given."""
    taken = arguments if tokens is None else rows(arguments, slice(None), tokens)
    found = op(**taken)
    found = found if isinstance(found, tuple) else (found,)
    return tuple(y for y in found if y.shape[1] == (LENGTH if tokens is None else tokens.stop - tokens.start))


@pytest.mark.parametrize("name", ALL)
def test_sequences_stand_alone_between_padding(name):
    op, make, switches = ALL[name]
    a = make(1) | switches
    a.pop("initial_state", None)
    a.pop("return_final_state", None)
    leaves = [v.requires_grad_() for v in a.values() if isinstance(v, Tensor) and v.is_floating_point()]
    found = run(op, a | {"seq_idx": IDS})
    expected = tuple(torch.zeros_like(y) for y in found)
    for tokens in SEQUENCES:
        for whole, part in zip(expected, run(op, a, tokens), strict=True):
            whole[:, tokens] = part
    weights = [normal(*y.shape) for y in found]
    totals = [sum((y * w).sum() for y, w in zip(ys, weights, strict=True)) for ys in (found, expected)]
    gradients = [torch.autograd.grad(total, leaves) for total in totals]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients)
    for tensor in (*found, *(g for g in gradients[0] if g.dim() > 2)):
        assert not tensor[:, PADDING].any()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", [name for name in WITH_STATES if "reversed" not in name])
def test_the_final_state_is_that_of_the_last_sequence(name, reverse):
    op, make, _ = ALL[name]
    a = make(1) | {"reverse": reverse, "return_final_state": True}
    a.pop("initial_state", None)
    _, state = op(**a, seq_idx=IDS)
    _, expected = op(**rows(a, slice(None), SEQUENCES[0 if reverse else -1]))
    torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", [name for name in WITH_STATES if "reversed" not in name])
def test_a_state_passes_through_padding_alone(name, reverse):
    """One row of padding alone; and one with a sequence, which begins empty behind padding."""
    op, make, _ = ALL[name]
    a = make(2) | {"reverse": reverse, "return_final_state": True}
    a.pop("initial_state", None)
    start = normal(*op(**a)[1].shape)
    ids = torch.full((2, LENGTH), -1, dtype=torch.int8)
    ids[1, 3:7] = 4
    y, state = op(**a, initial_state=start, seq_idx=ids)
    expected, end = op(**rows(a, slice(1, 2), slice(3, 7)))
    assert not y[0].any()
    torch.testing.assert_close(state[0], start[0])
    torch.testing.assert_close((y[1:, 3:7], state[1:]), (expected, end))


@pytest.mark.parametrize("name", [name for name in WITH_STATES if not name.startswith("selective")])
def test_with_right_padding_of_both_kinds(name):
    """`lengths` parts nothing: in a reversed scan the initial state still enters through it."""
    op, make, switches = ALL[name]
    a = make(2) | switches | {"return_final_state": True}
    a.pop("initial_state", None)
    a["initial_state"] = normal(*op(**a)[1].shape)
    ids = torch.tensor([0, 0, 0, -1, 5, 5, 5, 5, 2, -1, 3]).expand(2, -1)
    y, state = op(**a, seq_idx=ids, lengths=torch.tensor([8, 0]))
    expected, end = op(**rows(a, slice(0, 1), slice(0, 8)), seq_idx=ids[:1, :8])
    torch.testing.assert_close((y[:1, :8], state[:1]), (expected, end))
    assert not y[0, 8:].any() and not y[1].any()
    torch.testing.assert_close(state[1], a["initial_state"][1])
