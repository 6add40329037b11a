"""The Triton selective scan, one way and both, against the loops in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transmamba_kernels import bidirectional_scan, selective_scan
from transmamba_kernels.bidirectional_scan import reference as both_reference
from transmamba_kernels.selective_scan import cpu, gpu, launch, plan, reference

HALF = {"u", "delta", "B", "C", "z"}
# The interpreter rounds to bfloat16 by cutting off, twice the error.
COMPILED = torch.cuda.is_available()
HALF_LIMIT = 1e-2 if COMPILED else 2e-2


def draw(
    length: int, channels: int, states: int, options: str, groups: int = 1, batch: int = 2
) -> dict[str, Any]:
    """options: z, D, b: delta_bias, h: initial state, f: final state, s: seq_idx, r: reverse."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    made: dict[str, Any] = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) * 0.5,
        "A": -(normal(channels, states).abs() + 0.1),
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
        "delta_softplus": True,
        "reverse": "r" in options,
        "return_final_state": "f" in options,
    }
    shapes = {
        "z": (batch, length, channels),
        "D": (channels,),
        "b": (channels,),
        "h": (batch, channels, states),
    }
    names = {"z": "z", "D": "D", "b": "delta_bias", "h": "initial_state"}
    made |= {names[o]: normal(*shapes[o]) for o in "zDbh" if o in options}
    if "s" in options:
        made["seq_idx"] = (torch.arange(length) // 5).repeat(batch, 1)
    return made


def rounded(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if k.removesuffix("_b") in HALF else v for k, v in arguments.items()}


def loop(**arguments: Any) -> Any:
    """The reference; beyond 200 tokens the PyTorch path, which other tests hold against the reference."""
    names = ("D", "z", "delta_bias", "initial_state", "seq_idx")
    full = {**dict.fromkeys(names), **arguments}
    y, state = (reference if full["u"].shape[1] <= 200 else cpu).selective_scan(**full)
    return (y, state) if full["return_final_state"] else y


# of channels in a program: however few there are it is one of many, or the other way round
MANY, FEW = (0, 0), (10**6, 10**6)
SHORT = (1, 2, 63, 64, 65, 197) if COMPILED else (1, 18)


@pytest.mark.quick(
    dict(length=18, few=MANY, options=""),
    dict(length=18, few=MANY, options="zDbhfr"),
    dict(length=18, few=MANY, options="zDbhfs"),
    dict(length=18, few=FEW, options="zDb"),
    dict(length=18, few=FEW, options="zDbhf"),
    dict(length=18, few=FEW, options="Dhfsr"),
    dict(length=1, few=MANY, options="zDbhfs"),
    dict(length=1, few=FEW, options="zDbhfr"),
)
@pytest.mark.parametrize("length", SHORT)
@pytest.mark.parametrize("options", ["", "zDb", "zDbhf", "zDbhfr", "zDbhfs", "Dhfsr"])
@pytest.mark.parametrize("few", [MANY, FEW], ids=["many", "few"])
def test_all_options(agree_on_device, size, length, options, few, monkeypatch):
    monkeypatch.setattr(launch, "FEW", few)
    arguments = draw(length, *size((96, 16), (20, 3)), options)
    agree_on_device(selective_scan, loop, arguments, 1e-5, 1e-4)


@pytest.mark.skipif(not COMPILED, reason="as many steps take hours in the interpreter")
@pytest.mark.parametrize("length", [1000, 4096])
@pytest.mark.parametrize("options", ["zDbhf", "zDbhfr"])
def test_long_sequences(agree_on_device, length, options):
    agree_on_device(selective_scan, loop, draw(length, 32, 16, options), 1e-5, 1e-4)


@pytest.mark.quick(
    dict(length=18, dtype=torch.bfloat16, options="zDb"),
    dict(length=18, dtype=torch.float16, options="zDbhfr"),
)
@pytest.mark.parametrize("length", SHORT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", ["zDb", "zDbhfr"])
def test_half_precision(agree_on_device, size, length, dtype, options):
    arguments = rounded(draw(length, *size((96, 16), (36, 4)), options), dtype)
    agree_on_device(selective_scan, loop, arguments, HALF_LIMIT, HALF_LIMIT)


@pytest.mark.parametrize(("channels", "states", "groups"), [(36, 1, 3), (6, 32, 2), (5, 64, 1), (32, 200, 1)])
def test_shapes(agree_on_device, size, channels, states, groups):
    arguments = draw(size(65, 7), channels, states, "zDbhf", groups)
    agree_on_device(selective_scan, loop, arguments, 1e-5, 1e-4)


@pytest.mark.parametrize("options", ["zb", "zbhfr"])
def test_segments_join(agree_on_device, size, options, monkeypatch):
    """Few channels: time is cut, and the states between the segments travel."""
    arguments = draw(size(4096, 100), size(32, 3), size(16, 2), options, batch=1)
    scan = plan.Scan.make(*(arguments[k] for k in ("u", "delta", "A", "B", "C")), *[None] * 4, True, False)
    if COMPILED:
        scan = scan._replace(u=scan.u.cuda())
    elif plan.Cut.make(scan, backward=False).segments == 1:
        monkeypatch.setattr(plan, "CHUNKS_A_SEGMENT", 2)
    assert all(plan.Cut.make(scan, backward=backward).segments > 1 for backward in (False, True))
    agree_on_device(selective_scan, loop, arguments, 1e-5, 1e-4)


def test_the_forward_is_cut_only_where_warps_are_few():
    """At (64, 384, 784) on 132 multiprocessors: the backward in two, the forward in one."""
    u, A, B = (torch.empty(s, device="meta") for s in ((64, 784, 384), (384, 16), (64, 784, 16)))
    scan = plan.Scan.make(u, u, A, B, B, *[None] * 4, True, False)
    assert [plan.Cut.make(scan, backward=backward).segments for backward in (False, True)] == [1, 2]


@pytest.mark.quick(
    dict(length=2, options="zDbhfr"),
    dict(length=5, options="zDbhf"),
    dict(length=7, options="zDbhfr"),
    dict(length=18, options="zDbhf"),
)
@pytest.mark.parametrize("options", ["zDbhf", "zDbhfr"])
@pytest.mark.parametrize("length", [2, 5, 7, 18])
def test_a_sequence_of_one_token_comes_last(agree_on_device, length, options):
    arguments = draw(length, 8, 4, options)
    arguments["seq_idx"] = torch.zeros(2, length, dtype=torch.int64)
    arguments["seq_idx"][:, 0 if "r" in options else -1] = 1
    agree_on_device(selective_scan, loop, arguments, 1e-5, 1e-4)


def test_packed_rows_are_not_cut(agree_on_device, size, monkeypatch):
    monkeypatch.setattr(plan, "CHUNKS_A_SEGMENT", 2)
    arguments = draw(size(1000, 70), 3, 2, "bhfs", batch=1)
    agree_on_device(selective_scan, loop, arguments, 1e-5, 1e-4)


def test_fewer_programs_than_blocks(agree_on_device, size, monkeypatch):
    """A backward program takes one block after the other through the same memory."""
    monkeypatch.setattr(plan, "processors", lambda device: 1)
    monkeypatch.setattr(plan, "WARPS_PER_PROCESSOR", 1)
    agree_on_device(selective_scan, loop, draw(size(197, 17), 72, 2, "zDb", batch=1), 1e-5, 1e-4)


@pytest.mark.parametrize(("step", "decay"), [(20.0, -16.0), (1e-4, -1.0), (20.0, -1e-6)])
def test_extremes(agree_on_device, size, step, decay):
    arguments = draw(size(197, 19), 8, 4, "z")
    arguments["delta"] = torch.full_like(arguments["delta"], step)
    arguments["A"] = torch.full_like(arguments["A"], decay)
    arguments["delta_softplus"] = False
    agree_on_device(selective_scan, loop, arguments, 1e-5, 1e-4)


def test_strided_inputs(device, size):
    arguments = {
        k: v.to(device) if isinstance(v, Tensor) else v for k, v in draw(size(65, 9), 12, 4, "zDb").items()
    }
    wide = {k: torch.cat([arguments[k]] * 2, dim=-1) for k in ("u", "z", "B", "C")}
    views = {k: v[..., : arguments[k].shape[-1]] for k, v in wide.items()}
    views["delta"] = arguments["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    views["A"] = arguments["A"].t().contiguous().t()
    for name in ("D", "delta_bias"):
        views[name] = torch.stack([arguments[name], torch.zeros_like(arguments[name])], dim=1)[:, 0]
    assert torch.equal(selective_scan(**arguments), selective_scan(**{**arguments, **views}))


@pytest.mark.quick()
def test_backward_is_deterministic(device, size):
    found = []
    for _ in range(2):
        arguments = rounded(draw(size(1000, 20), size(768, 36), 16, "zDb", batch=size(16, 2)), torch.bfloat16)
        leaves = {
            k: v.to(device).requires_grad_() if isinstance(v, Tensor) else v for k, v in arguments.items()
        }
        selective_scan(**leaves).float().square().sum().backward()
        found.append([leaf.grad for leaf in leaves.values() if isinstance(leaf, Tensor)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("length", [65, 197, 2048])
@pytest.mark.parametrize(("channels", "groups"), [(64, 1), (192, 1), (192, 4), (384, 1), (768, 1)])
def test_saves_at_most_three_bytes_an_element(length, channels, groups):
    """The next test tells that this is what is saved."""
    shapes = ((64, length, channels), (channels, 16), (64, length, groups, 16))
    u, A, B = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes)
    saved = plan.saved_like(u, A, B)
    chunks = -(-length // plan.CHUNK) * plan.CHUNK / length  # the last chunk may be short
    assert sum(x.nbytes for x in saved) <= (2 * chunks + 0.9) * u.numel()
    assert (saved[2].numel() > 0) == (channels >= 384 or (channels == 192 and groups == 1 and length > 65))


@pytest.mark.parametrize("channels", [32, 512])
def test_saves_what_it_says(device, size, channels):
    """With the rows of B and C, and where these are too large without them."""
    length, states = size((197, 16), (17, 1))
    arguments = rounded(draw(length, channels, states, "zDb"), torch.bfloat16)
    leaves = {k: v.to(device).requires_grad_() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    inputs = {leaf.untyped_storage().data_ptr() for leaf in leaves.values() if isinstance(leaf, Tensor)}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        selective_scan(**leaves)
    expected = plan.saved_like(*(leaves[name] for name in ("u", "A", "B")))
    assert (expected[2].numel() > 0) == (channels == 512)
    assert sum(saved.values()) == sum(x.nbytes for x in expected)


@pytest.mark.parametrize("used", [("y",), ("final",), ("y", "final")])
def test_an_output_that_nobody_uses(agree_on_device, size, used):
    """Its gradient is zeros, and is not given."""

    def chosen(scan):
        def run(**arguments):
            found = dict(zip(("y", "final"), scan(**arguments), strict=True))
            return tuple(found[name] for name in used)

        return run

    agree_on_device(chosen(selective_scan), chosen(loop), draw(size(197, 9), 24, 16, "zDbhf"), 1e-5, 1e-4)


def test_opcheck(device):
    arguments = draw(3, 4, 2, "zDbhf", batch=1)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    tensors = [arguments[k].to(device).requires_grad_() for k in names]
    torch.library.opcheck(
        torch.ops.transmamba.selective_scan.default, (*tensors, None, True, True, False, True)
    )
    assert gpu.SCAN.visible == 2


def test_compiles_whole(device):
    arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in draw(9, 4, 4, "zDbf").items()}
    arguments["u"].requires_grad_()
    y, state = selective_scan(**arguments)
    (expected,) = torch.autograd.grad(y.sum() + state.sum(), arguments["u"])
    y, state = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")(**arguments)
    (found,) = torch.autograd.grad(y.sum() + state.sum(), arguments["u"])
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not COMPILED, reason="CUDA graphs need a GPU")
def test_cuda_graph():
    arguments = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in draw(197, 64, 16, "zDb").items()}
    with torch.no_grad():
        expected = selective_scan(**arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = selective_scan(**arguments)
        graph.replay()
    assert torch.equal(y, expected)


def both(length: int, channels: int, states: int, gated: bool) -> dict[str, Any]:
    ahead, back = draw(length, channels, states, "zDb"), draw(length + 1000, channels, states, "Db")
    made: dict[str, Any] = {}
    for name in ("u", "delta", "A", "B", "C", "D", "delta_bias"):
        made[name] = ahead[name]
        made[name + "_b"] = back[name][:, :length] if back[name].dim() > 2 else back[name]
    return {**made, "delta_softplus": True, **({"z": ahead["z"]} if gated else {})}


def two_loops(**arguments: Any) -> Any:
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    return both_reference.bidirectional_scan(
        tuple(arguments[n] for n in names),
        tuple(arguments[n + "_b"] for n in names),
        arguments.get("z"),
        True,
        arguments.get("return_branches", False),
        arguments.get("lengths"),
    )


@pytest.mark.quick(dict(branches=False, gated=False), dict(branches=True, gated=True))
@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_both_directions(agree_on_device, size, branches, gated):
    arguments = {**both(size(197, 11), size(96, 20), size(16, 3), gated), "return_branches": branches}
    agree_on_device(bidirectional_scan, two_loops, arguments, 1e-5, 1e-4)


def test_both_directions_in_half_precision(agree_on_device, size):
    arguments = rounded(both(size(197, 11), size(96, 20), size(16, 3), True), torch.bfloat16)
    agree_on_device(bidirectional_scan, two_loops, arguments, HALF_LIMIT, HALF_LIMIT)


def test_padding_starts_no_scan(agree_on_device, device, size):
    length = size(197, 11)
    arguments = {**both(length, 8, 3, True), "lengths": torch.tensor([length // 2, length])}
    agree_on_device(bidirectional_scan, two_loops, arguments, 1e-5, 1e-4)


def test_opcheck_both(device):
    arguments = both(3, 4, 2, True)
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    tensors = [arguments[n + s].to(device).requires_grad_() for n in names for s in ("", "_b")]
    z = arguments["z"].to(device).requires_grad_()
    torch.library.opcheck(torch.ops.transmamba.bidirectional_scan.default, (*tensors, z, True, False, True))
