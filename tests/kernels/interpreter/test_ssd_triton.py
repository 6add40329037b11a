"""The Triton SSD scans, one way and both, against loops over the tokens in float64."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from transmamba_kernels import bidirectional_ssd, ssd_scan
from transmamba_kernels.bidirectional_ssd import cpu as both_cpu
from transmamba_kernels.bidirectional_ssd import reference as both_reference
from transmamba_kernels.ssd_scan import cpu, launch, reference

COMPILED = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
# Sums of products of inputs of size 1 cancel.
CLOSE = {"forward": 2e-5, "gradients": 1e-4}
ROUNDED = {"forward": 1e-2, "gradients": 2e-2}
OPTIONS: list[tuple[str, ...]] = [
    (),
    ("D", "z", "delta_bias", "delta_softplus", "seq_idx", "lengths", "reverse"),
    ("z", "delta_bias", "delta_softplus", "initial_state", "return_final_state", "lengths"),
    ("initial_state", "return_final_state", "seq_idx", "reverse"),
]
BOTH: list[tuple[str, ...]] = [(), ("A_b", "delta_b", "delta_bias", "delta_softplus", "seq_idx", "lengths")]
FLAGS = ("delta_softplus", "return_final_state", "return_branches", "reverse")

needs_compiler = pytest.mark.skipif(not COMPILED, reason="needs compiled kernels")


@pytest.fixture(params=["fused", "sweep"])
def ways(request, monkeypatch):
    """The states between chunks, summed up by each program or swept; interpreted, in short chunks."""
    cut = {"fused": 8 if request.param == "fused" else 0} | ({} if COMPILED else {"chunk": 16})
    monkeypatch.setattr(launch, "overrides", {"forward": cut, "backward": cut})


def make(
    length: int,
    names: tuple[str, ...] = (),
    width: int = 3,
    depth: int = 4,
    heads: int = 2,
    groups: int = 1,
    batch: int = 2,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    made = {
        "x": normal(batch, length, heads, width),
        "delta": normal(batch, length, heads).abs() * 0.3,
        "A": -normal(heads).abs() - 0.1,
        "B": normal(batch, length, groups, depth),
        "C": normal(batch, length, groups, depth),
        "D": normal(heads, width),
        "z": normal(batch, length, heads, width),
        "delta_bias": normal(heads).abs(),
        "initial_state": normal(batch, heads, width, depth),
        "A_b": -normal(heads).abs(),
        "delta_b": normal(batch, length, heads).abs() * 0.3,
        # Ids come back: only a change may cut, never an equal id further off.
        "seq_idx": ((torch.rand(batch, length, generator=generator) < 0.05).cumsum(1) % 3).int(),
        "lengths": torch.linspace(length * 2 // 3, length, batch).int(),
    }
    kept = {n: v for n, v in made.items() if n in (*names, "x", "delta", "A", "B", "C")}
    return kept | {n: True for n in names if n in FLAGS}


def shape(size: Any, **full: int) -> dict[str, int]:
    """Sizes of `make`: large ones on a GPU."""
    return size({"width": 64, "depth": 64} | full, {})


def loop(**arguments: Any) -> Any:
    """The reference; beyond 200 tokens the PyTorch path, which other tests hold against the reference."""
    full: dict[str, Any] = dict.fromkeys(("D", "z", "delta_bias", "initial_state", "seq_idx", "lengths"))
    full |= {"delta_softplus": False, "reverse": False, "return_final_state": False, **arguments}
    y, state = (reference if arguments["x"].shape[1] <= 200 else cpu).ssd_scan(**full)
    return y if state is None else (y, state)


def two_loops(**arguments: Any) -> Any:
    names = ("A_b", "delta_b", "delta_bias", "branch_tokens", "seq_idx", "lengths")
    full: dict[str, Any] = dict.fromkeys(names)
    full |= {"delta_softplus": False, "return_branches": False, **arguments}
    short = arguments["x"].shape[1] <= 200
    return (both_reference.bidirectional_ssd if short else both_cpu.by_scans)(**full)


@pytest.fixture
def short_chunks(monkeypatch):
    cut = {} if COMPILED else {"chunk": 16}
    monkeypatch.setattr(launch, "overrides", {"forward": cut, "backward": cut})


@pytest.mark.quick(dict(length=18), dict(length=1, names=OPTIONS[2]))
@pytest.mark.parametrize("names", OPTIONS)
def test_scan_agrees_with_loop(agree_on_device, short_chunks, size, length, names):
    agree_on_device(ssd_scan, loop, make(length, names, **shape(size, depth=128)), **CLOSE)


@pytest.mark.quick(
    dict(length=18, names=BOTH[1]),
    dict(length=18, names=(), ways="fused"),
    dict(length=1, names=BOTH[1], ways="sweep"),
)
@pytest.mark.parametrize("names", BOTH)
def test_both_ways_agree_with_two_loops(agree_on_device, ways, size, length, names):
    agree_on_device(bidirectional_ssd, two_loops, make(length, names, **shape(size)), **CLOSE)


@pytest.mark.quick(
    dict(ways="fused", tokens=None, names=()),
    dict(ways="fused", tokens=[1, -16, 17], names=BOTH[1]),
    dict(ways="sweep", tokens=None, names=BOTH[1]),
)
@pytest.mark.parametrize("tokens", [None, [1, -16, 17]])
@pytest.mark.parametrize("names", BOTH)
def test_branches(agree_on_device, ways, size, tokens, names):
    arguments = make(size(197, 18), (*names, "delta_softplus", "return_branches"), **shape(size))
    if tokens:
        arguments["branch_tokens"] = torch.tensor(tokens)
    agree_on_device(bidirectional_ssd, two_loops, arguments, **CLOSE)


@pytest.mark.quick(dict(ways="fused", groups=4), dict(ways="sweep", groups=2))
@pytest.mark.parametrize("groups", [2, 4])
def test_groups(agree_on_device, ways, size, groups):
    arguments = make(size(197, 18), ("D",), heads=4, groups=groups, batch=1, **shape(size))
    agree_on_device(ssd_scan, loop, {**arguments, "D": arguments["D"][:, 0]}, **CLOSE)
    del arguments["D"]
    agree_on_device(bidirectional_ssd, two_loops, arguments, **CLOSE)


@pytest.mark.quick(dict(dtype=torch.bfloat16))
@pytest.mark.parametrize(
    ("width", "depth"),
    [(64, 128), (40, 100), (128, 128), (64, 256), (16, 16), (32, 64), (64, 32)] if COMPILED else [(20, 24)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(agree_on_device, size, dtype, width, depth):
    arguments = make(size(300, 18), ("D", "z"), width, depth, heads=size(6, 2))
    for name in ("x", "delta", "B", "C", "z"):
        arguments[name] = arguments[name].to(dtype)
    agree_on_device(ssd_scan, loop, arguments, **ROUNDED)
    both = {n: v for n, v in arguments.items() if n not in "Dz"}
    agree_on_device(bidirectional_ssd, two_loops, both, **ROUNDED)


def test_many_states(agree_on_device, ways, size):
    """The backward takes them in parts."""
    agree_on_device(ssd_scan, loop, make(size(197, 18), ("z",), 3, 100, batch=1), **CLOSE)
    agree_on_device(bidirectional_ssd, two_loops, make(size(197, 18), (), 3, 100, batch=1), **CLOSE)


def test_beyond_the_tiles(agree_on_device):
    """Heads and states that are too large take the PyTorch path."""
    arguments = make(5, ("initial_state", "return_final_state"), width=136, depth=8)
    agree_on_device(ssd_scan, loop, arguments, **CLOSE)
    agree_on_device(bidirectional_ssd, two_loops, make(5, width=136, depth=8), **CLOSE)


@pytest.mark.quick(
    dict(ways="fused", delta=20.0), dict(ways="fused", delta=0.0), dict(ways="sweep", delta=1e-4)
)
@pytest.mark.parametrize(("delta", "rate"), [(20.0, -16.0), (1e-4, -16.0), (1e-4, -1e-3), (0.0, -1.0)])
def test_extreme_decays(agree_on_device, ways, size, delta, rate):
    arguments = make(size(1000, 34), batch=1, **shape(size))
    arguments["delta"] = torch.full_like(arguments["delta"], delta)
    arguments["A"] = torch.full_like(arguments["A"], rate)
    agree_on_device(bidirectional_ssd, two_loops, arguments, **CLOSE)


def test_inputs_of_any_stride(agree_on_device, size):
    def strided(**arguments: Any) -> Any:
        apart = {
            n: v.transpose(0, -1).contiguous().transpose(0, -1) for n, v in arguments.items() if v.dim() > 1
        }
        return ssd_scan(**{**arguments, **apart})

    agree_on_device(strided, loop, make(size(197, 18), ("z", "initial_state"), **shape(size)), **CLOSE)


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_nothing_to_scan(device, batch, length):
    a = {n: v.to(device) for n, v in make(5, ("initial_state",)).items()}
    start = a.pop("initial_state")[:batch].requires_grad_()
    cut = {n: v[:batch, :length].requires_grad_() if v.dim() > 1 else v for n, v in a.items()}
    y, state = ssd_scan(**cut, initial_state=start, return_final_state=True)
    assert y.shape == (batch, length, 2, 3)
    assert torch.equal(state, start)
    (y.sum() + state.sum()).backward()
    assert torch.equal(start.grad, torch.ones_like(start))
    assert bidirectional_ssd(**cut).shape == y.shape


@pytest.mark.parametrize("op", [ssd_scan, bidirectional_ssd])
def test_padding_is_zero(device, size, op):
    a = {n: v.to(device) for n, v in make(size(197, 18), ("lengths",), batch=3, **shape(size)).items()}
    a["lengths"] = torch.tensor([0, 5, 17], dtype=torch.int64, device=device)
    leaves = {n: v.requires_grad_() for n, v in a.items() if v.is_floating_point()}
    y = op(**a)
    (y + 1).square().sum().backward()
    per_token = {"y": y, **{n: leaf.grad for n, leaf in leaves.items() if n != "A"}}
    for row, end in enumerate((0, 5, 17)):
        for name, tensor in per_token.items():
            assert not tensor[row, end:].any(), name
            assert end == 0 or tensor[row, :end].any(), name


@pytest.mark.quick()
@pytest.mark.parametrize("op", [ssd_scan, bidirectional_ssd])
def test_the_same_bits_twice(device, ways, size, op):
    a = {n: v.to(device) for n, v in make(size(785, 34), heads=size(6, 2), batch=1, **shape(size)).items()}

    def run() -> list[Tensor]:
        leaves = [v.clone().requires_grad_() for v in a.values()]
        y = op(*leaves)
        return [y, *torch.autograd.grad(y.square().sum(), leaves)]

    assert all(torch.equal(p, q) for p, q in zip(run(), run(), strict=True))


@pytest.mark.quick(dict(names=("initial_state", "seq_idx", "lengths")))
@pytest.mark.parametrize("names", [("D", "z"), ("initial_state", "seq_idx", "lengths")])
def test_registered_ops(device, monkeypatch, names):
    import transmamba_kernels.bidirectional_ssd.gpu  # noqa: F401  registers both

    monkeypatch.undo()
    a = make(3, (*names, "delta_bias"), batch=1)
    a = {n: v.to(device).requires_grad_(v.is_floating_point()) for n, v in a.items()}
    order = ("x", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state", "seq_idx", "lengths")
    final = "initial_state" in names
    torch.library.opcheck(
        torch.ops.transmamba.ssd_scan.default, (*(a.get(n) for n in order), True, False, final)
    )


@pytest.mark.quick(
    dict(split=True, names=("delta_bias", "seq_idx", "lengths")), dict(split=False, names=("A_b", "delta_b"))
)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("names", [("A_b", "delta_b"), ("delta_bias", "seq_idx", "lengths")])
def test_registered_op_both_ways(device, monkeypatch, names, split):
    import transmamba_kernels.bidirectional_ssd.gpu  # noqa: F401  registers it

    monkeypatch.undo()
    a = {n: v.to(device).requires_grad_(v.is_floating_point()) for n, v in make(3, names, batch=1).items()}
    order = ("x", "delta", "A", "B", "C", "A_b", "delta_b", "delta_bias", "seq_idx", "lengths")
    ops = torch.ops.transmamba
    op = ops.bidirectional_ssd_split if split else ops.bidirectional_ssd
    torch.library.opcheck(op.default, (*(a.get(n) for n in order), True))


@pytest.mark.quick(dict(used=(1,)))
@pytest.mark.parametrize("used", [(0, 1, 2), (1,), (0,)])
def test_branches_compile(device, size, monkeypatch, used):
    """As one graph, some outputs of which nobody uses."""
    monkeypatch.undo()
    a = {n: v.to(device) for n, v in make(size(18, 5), ("A_b", "delta_bias")).items()}

    def run(**tensors: Tensor) -> Tensor:
        found = bidirectional_ssd(**tensors, delta_softplus=True, return_branches=True)
        return sum((i + 1) * found[i].square().sum() for i in used)

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        leaves = {n: v.clone().requires_grad_() for n, v in a.items()}
        y = function(**leaves)
        results.append((y, *torch.autograd.grad(y, list(leaves.values()))))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.quick(dict(ways="fused", steps="far apart"), dict(ways="sweep", steps="signed"))
@pytest.mark.parametrize("steps", ["signed", "far apart"])
def test_branches_with_step_sizes_that_cancel(agree_on_device, ways, size, steps):
    """A token's own term has two step sizes: of both signs, and of which one drowns in the other."""
    arguments = make(size(197, 18), ("A_b", "delta_b", "return_branches"), **shape(size))
    sign = torch.ones_like(arguments["delta"])
    sign[:, ::2] = -1
    if steps == "signed":
        # Decays above 1: short lengths, small rates.
        arguments |= {n: arguments[n] * 1e-3 for n in ("A", "A_b")}
        arguments |= {"delta": arguments["delta"] * sign, "delta_b": -arguments["delta"] * sign * 1.01}
    else:
        arguments |= {"delta": torch.ones_like(sign), "delta_b": torch.full_like(sign, 1e-6)}
    agree_on_device(bidirectional_ssd, two_loops, arguments, **CLOSE)


@needs_compiler
@pytest.mark.parametrize("op", [ssd_scan, bidirectional_ssd])
@pytest.mark.parametrize("length", [65, 785])
def test_compiles_whole(device, monkeypatch, op, length):
    monkeypatch.undo()  # torch.compile traces torch.empty
    a = {n: v.to(device) for n, v in make(length, ("delta_bias",), width=64, depth=64).items()}
    results = []
    for run in (op, torch.compile(op, fullgraph=True)):
        leaves = {n: v.clone().requires_grad_() for n, v in a.items()}
        y = run(**leaves, delta_softplus=True)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(leaves.values()))))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


@needs_compiler
@pytest.mark.parametrize("op", [ssd_scan, bidirectional_ssd])
@pytest.mark.parametrize("length", [197, 785])
def test_in_a_cuda_graph(device, monkeypatch, op, length):
    monkeypatch.undo()
    a = {n: v.to(device) for n, v in make(length, ("delta_bias",), width=64, depth=64).items()}
    leaves = {n: v.clone().requires_grad_() for n, v in a.items()}

    def run() -> list[Tensor]:
        y = op(**leaves, delta_softplus=True)
        return [y, *torch.autograd.grad(y.square().sum(), list(leaves.values()))]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        leaves["x"].mul_(2.0)
        leaves["delta"].mul_(0.5)
    graph.replay()
    for p, q in zip(captured, run(), strict=True):
        assert torch.equal(p, q)
