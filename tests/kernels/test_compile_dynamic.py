"""PyTorch's path compiled once for many lengths and batch sizes: values, gradients, compilations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transmamba_kernels import (
    bidirectional_conv1d,
    bidirectional_scan,
    bidirectional_ssd,
    causal_conv1d,
    causal_conv1d_update,
    selective_scan,
    selective_state_update,
    ssd_scan,
    ssd_state_update,
)
from transmamba_kernels.selective_scan import blocks

CHANNELS, STATES, HEADS = 6, 4, 2
LENGTHS = [(2, 30 + 37 * i) for i in range(10)]
BATCHES = [(2 + i, 70) for i in range(10)]
Make = Callable[[int, int], dict[str, Any]]


def of_conv(batch: int, length: int) -> dict[str, Any]:
    return {"x": torch.randn(batch, length, CHANNELS), "weight": torch.randn(CHANNELS, 4)}


def of_both_convs(batch: int, length: int) -> dict[str, Any]:
    both = {"bias": None, "weight_b": torch.randn(CHANNELS, 4), "bias_b": torch.randn(CHANNELS)}
    return of_conv(batch, length) | both


def of_scan(batch: int, length: int) -> dict[str, Any]:
    tokens = {n: torch.randn(batch, length, CHANNELS) for n in ("u", "delta", "z")}
    matrices = {n: torch.randn(batch, length, STATES) for n in ("B", "C")}
    return tokens | matrices | {"A": -torch.rand(CHANNELS, STATES), "delta_softplus": True}


def of_both_scans(batch: int, length: int) -> dict[str, Any]:
    a = of_scan(batch, length)
    return a | {n + "_b": a[n] * 0.7 for n in ("u", "delta", "A", "B", "C")}


def of_ssd(batch: int, length: int) -> dict[str, Any]:
    tokens = {"x": torch.randn(batch, length, HEADS, 3), "delta": torch.randn(batch, length, HEADS)}
    matrices = {n: torch.randn(batch, length, 1, STATES) for n in ("B", "C")}
    return tokens | matrices | {"A": -torch.rand(HEADS), "delta_softplus": True}


def packed(make: Make) -> Make:
    """With ids, three sequences a row and padding behind them."""

    def add(batch: int, length: int) -> dict[str, Any]:
        ids = torch.arange(length).expand(batch, -1) * 4 // length
        return make(batch, length) | {"seq_idx": torch.where(ids == 3, -1, ids)}

    return add


def first_token(make: Make, *state: int) -> Make:
    """One token of the sequence, and the state in front of it."""

    def cut(batch: int, length: int) -> dict[str, Any]:
        a = make(batch, length)
        tokens = {n: v[:, 0] for n, v in a.items() if isinstance(v, Tensor) and v.dim() > 2}
        return a | tokens | {"state": torch.randn(batch, *state)}

    return cut


FINAL = {"return_final_state": True}
CASES: dict[str, tuple[Callable[..., Any], Make, dict[str, Any]]] = {
    "causal_conv1d": (causal_conv1d, of_conv, FINAL),
    "causal_conv1d, packed": (causal_conv1d, packed(of_conv), FINAL),
    "bidirectional_conv1d": (bidirectional_conv1d, packed(of_both_convs), {}),
    "selective_scan": (selective_scan, of_scan, FINAL),
    "selective_scan, packed": (selective_scan, packed(of_scan), {"reverse": True}),
    "bidirectional_scan": (bidirectional_scan, of_both_scans, {"return_branches": True}),
    "ssd_scan": (ssd_scan, of_ssd, FINAL),
    "ssd_scan, packed": (ssd_scan, packed(of_ssd), {"reverse": True}),
    "bidirectional_ssd, matrix": (bidirectional_ssd, packed(of_ssd), {}),
    "bidirectional_ssd, scans": (bidirectional_ssd, of_ssd, {"quadratic_limit": 0}),
}
STEPS: dict[str, tuple[Callable[..., Any], Make]] = {
    "causal_conv1d_update": (causal_conv1d_update, first_token(of_conv, CHANNELS, 3)),
    "selective_state_update": (selective_state_update, first_token(of_scan, CHANNELS, STATES)),
    "ssd_state_update": (ssd_state_update, first_token(of_ssd, HEADS, 3, STATES)),
}


def outputs_and_gradients(op: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    leaves = {
        n: v.clone().requires_grad_()
        for n, v in arguments.items()
        if isinstance(v, Tensor) and v.is_floating_point()
    }
    found = op(**arguments | leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    sum(y.square().sum() for y in outputs).backward()
    return [y.detach() for y in outputs] + [leaf.grad for leaf in leaves.values() if leaf.grad is not None]


def compiled(op: Callable[..., Any]) -> tuple[Callable[..., Any], CompileCounterWithBackend]:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(op, backend=counter, dynamic=True, fullgraph=True), counter


# by numbers of rows: one of the scans that are cut by them; packed rows are cut by what they hold
OFTEN = ("selective_scan", "bidirectional_ssd, scans")
BY_BATCH = [
    pytest.param(name, BATCHES, id=f"{name}-batches", marks=[pytest.mark.slow] * (name not in OFTEN))
    for name in CASES
]


@pytest.mark.parametrize(
    ("name", "shapes"), [*[pytest.param(name, LENGTHS, id=f"{name}-lengths") for name in CASES], *BY_BATCH]
)
def test_one_graph_for_all_sizes(monkeypatch, name, shapes):
    """In small buffers, so that the scans are cut into many chunks and rows, as at larger sizes."""
    monkeypatch.setattr(blocks, "CPU_BUFFER", 1 << 11)
    op, make, switches = CASES[name]
    graph, counter = compiled(op)
    for shape in shapes:
        torch.manual_seed(0)
        arguments = make(*shape) | switches
        found, expected = (outputs_and_gradients(run, arguments) for run in (graph, op))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", STEPS)
def test_one_graph_for_all_batches_of_a_step(name):
    op, make = STEPS[name]
    graph, counter = compiled(op)
    for shape in BATCHES:
        torch.manual_seed(0)
        arguments = make(*shape)
        copy = arguments | {"state": arguments["state"].clone()}
        torch.testing.assert_close(graph(**arguments), op(**copy))
        torch.testing.assert_close(arguments["state"], copy["state"])
    assert counter.frame_count <= 2


@pytest.mark.parametrize("width", [1, 24, 12_288, 16_384, 16_385, 1 << 21])
def test_chunks_are_counted_as_they_are_cut(width):
    """The count that a compiled graph takes for the number of chunks, against the list of them."""
    device = torch.device("cpu")
    for batch in (0, 1, 2, 3, 5, 64, 1000):
        for length in (0, 1, 15, 16, 17, 31, 32, 33, 64, 197, 4096, 30_000):
            steps = blocks.Plan.make(batch, length, width, device, reverse=False).steps
            assert blocks.count_steps(batch, length, width, device) == len(steps)
            assert [i for part in steps for i in range(part.start, part.stop)] == list(range(length))
