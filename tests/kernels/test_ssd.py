"""The SSD scan against a loop and the selective scan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ssd_inputs import extras, loop, make
from transmamba_kernels import bidirectional_ssd, selective_scan, ssd_scan
from transmamba_kernels.ssd_scan import blocks


@pytest.mark.parametrize("length", [1, 7, 64, 65, 197])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("names", [(), ("D", "z", "delta_bias", "initial_state")])
def test_ssd_agrees_with_loop(agree, length, reverse, names):
    arguments = extras(make(length), *names)
    arguments |= {"delta_softplus": bool(names), "return_final_state": True, "reverse": reverse}
    agree(ssd_scan, loop, arguments)


@pytest.mark.parametrize("groups", [1, 4])
def test_ssd_groups(agree, groups):
    agree(ssd_scan, loop, make(70, groups=groups))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
def test_ssd_some_rows_at_a_time(agree, monkeypatch, mark, rows, reverse):
    monkeypatch.setattr(blocks, "CPU_MATRICES", rows * 4 * 64 * 64)
    arguments = mark(extras(make(70, batch=5), "D", "initial_state"), "seq_idx", ids=0.03)
    agree(ssd_scan, loop, arguments | {"return_final_state": True, "reverse": reverse})


@pytest.mark.parametrize(("delta", "rate"), [(20.0, -16.0), (1e-4, -16.0), (1e-4, -1e-3)])
def test_ssd_extreme_decays(agree, delta, rate):
    arguments = make(80)
    arguments["delta"] = torch.full_like(arguments["delta"], delta)
    agree(ssd_scan, loop, arguments | {"A": torch.full_like(arguments["A"], rate)})


def test_ssd_skip_of_every_channel(agree):
    a = make(9)
    agree(ssd_scan, loop, a | {"D": torch.randn(4, 3, dtype=torch.float64), "z": a["x"].flip(1)})


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("marks", [("seq_idx",), ("lengths",), ("seq_idx", "lengths")])
@pytest.mark.parametrize("length", [1, 64, 150])
def test_ssd_packed_and_padded(agree, mark, length, marks, reverse):
    arguments = extras(make(length, batch=5), "D", "z", "delta_bias", "initial_state")
    arguments = mark(arguments, *marks, ids=0.03)
    switches = {"delta_softplus": True, "return_final_state": True, "reverse": reverse}
    agree(ssd_scan, loop, arguments | switches)


def test_ssd_is_a_selective_scan_with_one_decay_a_head():
    a = extras(make(70, groups=2), "D", "initial_state")
    y, state = ssd_scan(**a, return_final_state=True)

    def spread(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(3, dim=-1)

    states = a["B"].shape[3]
    expected, end = selective_scan(
        a["x"].flatten(2),
        spread(a["delta"]),
        spread(a["A"])[:, None].expand(-1, states),
        a["B"],
        a["C"],
        D=spread(a["D"]),
        initial_state=a["initial_state"].flatten(1, 2),
        return_final_state=True,
    )
    torch.testing.assert_close(y.flatten(2), expected)
    torch.testing.assert_close(state.flatten(1, 2), end)


def test_ssd_split_in_two_equals_whole():
    a = extras(make(150), "initial_state")
    whole, end = ssd_scan(**a, return_final_state=True)
    first = {n: v[:, :77] if n in ("x", "delta", "B", "C") else v for n, v in a.items()}
    second = {n: v[:, 77:] if n in ("x", "delta", "B", "C") else v for n, v in a.items()}
    y_1, middle = ssd_scan(**first, return_final_state=True)
    y_2, last = ssd_scan(**{**second, "initial_state": middle}, return_final_state=True)
    torch.testing.assert_close(torch.cat([y_1, y_2], 1), whole)
    torch.testing.assert_close(last, end)


def test_ssd_gradcheck():
    arguments = extras(make(9, states=2, heads=2), "D", "initial_state")
    names = list(arguments)

    def scan(*values: torch.Tensor) -> Any:
        return ssd_scan(**dict(zip(names, values, strict=True)), return_final_state=True)

    assert torch.autograd.gradcheck(scan, [v.requires_grad_() for v in arguments.values()], fast_mode=True)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("delta", (2, 5), "delta: shape (2, 5), expected (B, L, H) = (2, 5, 4)"),
        ("A", (4, 4), "A: shape (4, 4), expected (H,) = (4,)"),
        ("B", (2, 5, 3, 4), "B: 3 groups do not divide 4 heads"),
        ("C", (2, 5, 2, 5), "C: shape (2, 5, 2, 5), expected (B, L, G, N) = (2, 5, 2, 4)"),
        ("B", (2, 5, 2, 0), "B: shape (2, 5, 2, 0), expected (B, L, G, N) with N of at least 1"),
    ],
)
@pytest.mark.parametrize("op", [ssd_scan, bidirectional_ssd])
def test_wrong_shapes_are_named(op, name, shape, says):
    arguments = make(5) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError) as error:
        op(**arguments)
    assert says in str(error.value)
