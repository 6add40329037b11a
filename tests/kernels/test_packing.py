"""Padding is as if it were not there, packed sequences as if they stood alone, and all of it compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transmamba_kernels import (
    bidirectional_scan,
    bidirectional_ssd,
    causal_conv1d,
    selective_scan,
    seq_idx_from_cu_seqlens,
    ssd_scan,
)
from transmamba_kernels.causal_conv1d.cpu import CONV
from transmamba_kernels.ssd_scan.cpu import SSD
from transmamba_kernels.ssd_scan.decay import _TWO_WAY

BATCH, LENGTH, CHANNELS, HEADS, STATES = 3, 11, 6, 2, 4
BY_ROW = ("initial_state",)


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def of_selective_scan(batch: int = BATCH) -> dict[str, Any]:
    tokens = {n: normal(batch, LENGTH, CHANNELS) for n in ("u", "delta", "z")}
    matrices = {n: normal(batch, LENGTH, STATES) for n in ("B", "C")}
    rest = {"A": -normal(CHANNELS, STATES).abs(), "D": normal(CHANNELS), "delta_bias": normal(CHANNELS)}
    return {**tokens, **matrices, **rest, "delta_softplus": True}


def of_bidirectional_scan(batch: int = BATCH) -> dict[str, Any]:
    ahead = of_selective_scan(batch)
    doubled = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    return ahead | {n + "_b": ahead[n] * 0.7 for n in doubled}


def of_ssd(batch: int = BATCH) -> dict[str, Any]:
    tokens = {"x": normal(batch, LENGTH, HEADS, 3), "delta": normal(batch, LENGTH, HEADS)}
    matrices = {n: normal(batch, LENGTH, 1, STATES) for n in ("B", "C")}
    return {**tokens, **matrices, "A": -normal(HEADS).abs(), "delta_bias": normal(HEADS)} | {
        "delta_softplus": True
    }


def of_ssd_scan(batch: int = BATCH) -> dict[str, Any]:
    extra = {"D": normal(HEADS), "z": normal(batch, LENGTH, HEADS, 3)}
    return of_ssd(batch) | extra | {"initial_state": normal(batch, HEADS, 3, STATES)}


def of_conv(batch: int = BATCH) -> dict[str, Any]:
    x = {"x": normal(batch, LENGTH, CHANNELS)}
    return x | {"weight": normal(CHANNELS, 4), "bias": normal(CHANNELS), "activation": "silu"}


CASES = {
    "selective_scan": (selective_scan, of_selective_scan, {}),
    "selective_scan, reversed": (selective_scan, of_selective_scan, {"reverse": True}),
    "bidirectional_scan": (bidirectional_scan, of_bidirectional_scan, {}),
    "bidirectional_scan, branches": (bidirectional_scan, of_bidirectional_scan, {"return_branches": True}),
    "ssd_scan": (ssd_scan, of_ssd_scan, {"return_final_state": True}),
    "ssd_scan, reversed": (ssd_scan, of_ssd_scan, {"reverse": True}),
    "bidirectional_ssd, matrix": (bidirectional_ssd, of_ssd, {"return_branches": True}),
    "bidirectional_ssd, scans": (bidirectional_ssd, of_ssd, {"quadratic_limit": 0}),
    "causal_conv1d": (causal_conv1d, of_conv, {}),
    "causal_conv1d, reversed": (causal_conv1d, of_conv, {"reverse": True}),
}
ALONE = [name for name in CASES if not name.startswith("selective")]
PACKED = [name for name in CASES if not name.startswith("bidirectional_scan")]


def rows(arguments: dict[str, Any], some: slice, tokens: slice) -> dict[str, Any]:
    """Some rows and tokens of all arguments that have them."""
    cut = {}
    for name, value in arguments.items():
        if name in BY_ROW:
            cut[name] = value[some]
        elif isinstance(value, torch.Tensor) and value.dim() > 2:
            cut[name] = value[some, tokens]
        else:
            cut[name] = value
    return cut


def first(outputs: Any) -> torch.Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize("name", ALONE)
def test_padding_is_as_if_it_were_not_there(name):
    op, make, switches = CASES[name]
    a = make()
    leaf = next(iter(a.values())).requires_grad_()
    lengths = torch.tensor([0, 4, LENGTH])
    y = first(op(**a, **switches, lengths=lengths))
    y.square().sum().backward()
    for b, end in enumerate(lengths.tolist()):
        expected = first(op(**rows(a, slice(b, b + 1), slice(0, end)), **switches))
        torch.testing.assert_close(y[b : b + 1, :end], expected)
        assert not y[b, end:].any() and not leaf.grad[b, end:].any()


@pytest.mark.parametrize("name", ["ssd_scan", "ssd_scan, reversed"])
def test_padding_leaves_the_state_as_it_is(name):
    op, make, switches = CASES[name]
    a, lengths = make(), torch.tensor([0, 4, LENGTH])
    switches = switches | {"return_final_state": True}
    _, state = op(**a, **switches, lengths=lengths)
    for b, end in enumerate(lengths.tolist()):
        _, expected = op(**rows(a, slice(b, b + 1), slice(0, end)), **switches)
        torch.testing.assert_close(state[b : b + 1], expected)


@pytest.mark.parametrize("name", PACKED)
def test_packed_sequences_stand_alone(name):
    op, make, switches = CASES[name]
    a = make(1)
    a.pop("initial_state", None)
    bounds = torch.tensor([0, 1, 5, 9])
    seq_idx = seq_idx_from_cu_seqlens(bounds, LENGTH)
    y = first(op(**a, **switches, seq_idx=seq_idx))
    for begin, end in zip([0, 1, 5, 9], [1, 5, 9, LENGTH], strict=True):
        expected = first(op(**rows(a, slice(None), slice(begin, end)), **switches))
        torch.testing.assert_close(y[:, begin:end], expected)


def test_seq_idx_from_cu_seqlens():
    ids = seq_idx_from_cu_seqlens(torch.tensor([0, 2, 2, 5], dtype=torch.int32), 7)
    assert ids.tolist() == [[0, 0, 2, 2, 2, 3, 3]] and ids.dtype == torch.int32
    with pytest.raises(ValueError, match=r"cu_seqlens: shape \(1,\), expected \(S \+ 1,\)"):
        seq_idx_from_cu_seqlens(torch.tensor([0]), 7)


@pytest.mark.parametrize("marks", [pytest.param((), marks=pytest.mark.slow), ("seq_idx", "lengths")])
@pytest.mark.parametrize("name", CASES)
def test_compiles_in_one_graph(agree, mark, compiled, name, marks):
    op, make, switches = CASES[name]
    takes = {"selective_scan": ("seq_idx",), "bidirectional_scan": ("lengths",)}
    taken = [m for m in marks if m in takes.get(op.__name__, marks)]
    agree(compiled(op), op, mark(make(), *taken) | switches)


@pytest.mark.parametrize("marks", [(), ("seq_idx", "lengths")])
@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_reference(monkeypatch, mark, name, marks):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", "reference")
    op, make, switches = CASES[name]
    takes = {"selective_scan": ("seq_idx",), "bidirectional_scan": ("lengths",)}
    a = mark(make(2), *[m for m in marks if m in takes.get(op.__name__, marks)]) | switches
    names = [n for n, v in a.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]

    def run(*values: torch.Tensor) -> Any:
        return op(**{**a, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(run, [a[n].requires_grad_() for n in names], fast_mode=True)


@pytest.mark.parametrize("packed", [False, True])
def test_registered_ops_are_what_they_say(packed):
    """Schemas, fakes and the registration of gradients, by torch's own checks."""
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.int32) if packed else None
    conv = of_conv()
    x, weight, bias = (conv[n].requires_grad_() for n in ("x", "weight", "bias"))
    torch.library.opcheck(CONV._op, (x, weight, bias, ids, True, False, True))
    a = of_ssd_scan()
    names = ("x", "delta", "A", "B", "C", "D", "initial_state")
    leaves = [a[n].requires_grad_() for n in names]
    torch.library.opcheck(SSD._op, (*leaves, ids, True, True, True))
    sums = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    ids = ids[:2, :5].unsqueeze(1) if ids is not None else None
    torch.library.opcheck(_TWO_WAY._op, (sums, sums * 0.5, ids, torch.float32))
