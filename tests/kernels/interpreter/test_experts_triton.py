"""The Triton experts against all experts for all tokens in float64; the sort against torch's."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import expert_inputs
import pytest
import torch
from transmamba_kernels import grouped_experts
from transmamba_kernels.grouped_experts import gpu, launch

from transmamba.layers.experts import Experts, ExpertsShape

HALF, SINGLE = torch.bfloat16, torch.float32
ERRORS = {SINGLE: (1e-5, 1e-4), HALF: (1e-2, 2e-2)}


@pytest.mark.quick(
    dict(each=1, activation="relu", gated=False),
    dict(each=2, activation="silu", gated=True, dtype=HALF),
    dict(each=2, activation="silu", gated=False, dtype=SINGLE),
    dict(each=1, activation="relu", gated=True, dtype=SINGLE),
)
@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [HALF, SINGLE])
def test_values_and_gradients(agree_on_device, size, each, activation, gated, dtype):
    """Sizes that fill no tile, an expert without tokens, tokens of weight 0."""
    given = expert_inputs.arguments(
        size(5000, 150), each=each, activation=activation, gated=gated, dtype=dtype
    )
    agree_on_device(grouped_experts, expert_inputs.truth, given, *ERRORS[dtype])


@pytest.mark.parametrize("dtype", [HALF, SINGLE])
@pytest.mark.parametrize("fewest, crowd", [(64, 2), (512, 2), (16, None)])
def test_one_expert_has_them_all(agree_on_device, monkeypatch, size, dtype, fewest, crowd):
    """Whose rows are several parts, or one; and several experts of several parts."""
    monkeypatch.setattr(launch, "FEWEST_ROWS", fewest)
    given = expert_inputs.arguments(size(9000, 190), dtype=dtype, crowd=crowd)
    agree_on_device(grouped_experts, expert_inputs.truth, given, *ERRORS[dtype])


@pytest.mark.parametrize("width, neurons", [(256, 128), (64, 256), (3, 5)])
def test_sizes_of_whole_tiles_and_far_below(agree_on_device, width, neurons):
    given = expert_inputs.arguments(128, width=width, neurons=neurons, dtype=HALF)
    agree_on_device(grouped_experts, expert_inputs.truth, given, *ERRORS[HALF])


def test_what_is_no_number_stays_so(device):
    """In its own token alone, also where a matrix is what holds it: a step that failed must be seen."""
    given = expert_inputs.arguments(40, width=16, neurons=24)
    given = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
    given["x"][5] = torch.nan
    assert grouped_experts(**given).isnan().any(1).nonzero().flatten().tolist() == [5]
    given["up"][3, 7] = torch.nan
    touched = grouped_experts(**given).isnan().any(1).cpu()
    assert torch.equal(touched, (given["chosen"] == 3).any(1).cpu() | (torch.arange(40) == 5))


def test_in_float16(agree_on_device):
    given = expert_inputs.arguments(60, each=2, activation="silu", gated=True, dtype=torch.float16)
    agree_on_device(grouped_experts, expert_inputs.truth, given, 2e-3, 4e-3)


@pytest.mark.parametrize("experts", [3, 8, 70])
@pytest.mark.parametrize("pairs, rows", [(1, 64), (130, 64), (2500, 128)])
def test_pairs_are_sorted_by_expert(device, experts, pairs, rows):
    """As torch's stable sort has them; the table's tiles are all of an expert's rows, in order."""
    chosen = torch.randint(0, experts, (pairs, 1), generator=torch.Generator().manual_seed(pairs))
    chosen[chosen == 1] = 0  # one has none
    x, up = torch.empty(pairs, 8, device=device), torch.empty(experts, 8, 8, device=device)
    problem = launch.Problem(x, chosen.to(device), x[:, :1], up, up, "relu", False)
    routing = problem.route()
    assert torch.equal(routing.order.cpu().long(), chosen.flatten().argsort(stable=True))
    counts = chosen.flatten().bincount(minlength=experts).tolist()
    ends = list(itertools.accumulate(counts))
    expected = [
        [e, first, min(first + rows, end)]
        for e, (count, end) in enumerate(zip(counts, ends, strict=True))
        for first in range(end - count, end, rows)
    ]
    most = problem._most_tiles(rows)
    table = problem._table(routing.bounds, routing.bounds.new_empty(most, 3), rows).tolist()
    assert table[: len(expected)] == expected and len(expected) <= most
    assert all(first >= last for _, first, last in table[len(expected) :])


@pytest.mark.parametrize("trained", [("x",), ("weights",), ("up", "down"), ()])
def test_gradients_that_nobody_asks_for(device, trained):
    given = expert_inputs.arguments(40, width=16, neurons=24, each=2, activation="silu", gated=True)
    given = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}

    def found(names):
        leaves = {n: given[n].clone().requires_grad_() for n in names}
        y = grouped_experts(**{**given, **leaves})
        if names:
            y.square().sum().backward()
        return {n: leaf.grad for n, leaf in leaves.items()} | {"y": y.detach()}

    every = found(("x", "weights", "up", "down"))
    for name, value in found(trained).items():
        assert torch.equal(value, every[name]), name


def test_the_same_bits_twice(device, size):
    given = expert_inputs.arguments(size(5000, 150), each=2, dtype=HALF)
    leaves = {n: v.to(device) for n, v in given.items() if isinstance(v, torch.Tensor)}

    def run():
        own = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in leaves.items()}
        y = grouped_experts(**{**given, **own})
        y.float().square().sum().backward()
        return [y.detach(), *(v.grad for v in own.values() if v.grad is not None)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_one_graph_for_all_lengths(device, monkeypatch):
    monkeypatch.undo()  # torch.compile traces torch.empty
    torch.compiler.reset()
    graph = torch.compile(grouped_experts, backend="aot_eager", dynamic=True, fullgraph=True)
    for count in (20, 33):
        given = expert_inputs.arguments(count, width=16, neurons=24, each=2, activation="silu")
        placed = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        found = []
        for op in (graph, grouped_experts):
            leaves = {n: placed[n].clone().requires_grad_() for n in ("x", "weights", "up", "down")}
            y = op(**{**placed, **leaves})
            y.square().sum().backward()
            found.append([y.detach(), *(leaf.grad for leaf in leaves.values())])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("gated", [False, True])
def test_the_op_is_as_it_says(device, monkeypatch, gated):
    """Shapes of what it saves, gradients, and sizes that a compiler leaves open."""
    monkeypatch.undo()
    given = expert_inputs.arguments(20, width=16, neurons=24, each=2, gated=gated)
    placed = [v.to(device) if isinstance(v, torch.Tensor) else v for v in given.values()]
    leaves = [
        v.requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in placed
    ]
    torch.library.opcheck(gpu.EXPERTS._op, (*leaves, True, True, True))


@pytest.mark.parametrize("neurons", [24, 15])
def test_the_layer_runs_on_them(device, monkeypatch, neurons):
    """In autocast's bfloat16, weights and gradients in float32, for sizes that no other product takes too."""
    torch.manual_seed(0)
    layer = Experts(ExpertsShape(width=16, neurons=neurons, count=4, each=2, normalised=True), capacity=1.0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    called = []
    plain = launch.Problem.route
    monkeypatch.setattr(launch.Problem, "route", lambda self: called.append(self.x.dtype) or plain(self))
    layer = layer.to(device).train()
    x = torch.randn(2, 20, 16).to(device).requires_grad_()
    with torch.autocast(device.type, dtype=HALF):
        y, routed = layer(x)
    y.float().square().sum().backward()
    assert called == [HALF] and not routed.within.all()

    wide, own = x.detach().double().requires_grad_(), layer.experts
    weights = routed.weights.detach().double().flatten(0, 1)
    up, down = (p.detach().double() for p in (own.up_proj, own.down_proj))
    right = expert_inputs.truth(
        wide.flatten(0, 1), routed.chosen.flatten(0, 1), weights, up, down, "relu", False
    )
    assert (y.double().flatten(0, 1) - right).norm() < 2e-2 * right.norm()
    assert own.up_proj.grad.dtype == SINGLE and layer.router.weight.grad.abs().max() > 0
    called.clear()
    layer.implement("eager")
    with torch.autocast(device.type, dtype=HALF):
        layer(x)
    assert not called


def test_stock_experts_take_them_by_name(device, monkeypatch):
    """A Mixtral's, as its own implementation has it; what is not held goes to that."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    model, ids = MixtralForCausalLM(config).to(device), torch.arange(12, device=device)[None]
    expected = model(ids).logits
    called = []
    plain = launch.Problem.route
    monkeypatch.setattr(launch.Problem, "route", lambda self: called.append(1) or plain(self))
    model.set_experts_implementation("transmamba")
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert called
    from transmamba.layers.grouped import _activation

    base = dict(
        has_bias=False, is_transposed=False, is_concatenated=True, has_gate=False, act_fn=torch.nn.ReLU(),
        _is_expert_parallel=False,
    )  # fmt: skip
    assert _activation(SimpleNamespace(**base)) == "relu"
    others = dict(has_bias=True, is_transposed=True, is_concatenated=False, act_fn=torch.nn.GELU())
    others |= dict(_is_expert_parallel=True, has_post_expert_norm=True)
    for name, value in others.items():
        assert _activation(SimpleNamespace(**{**base, name: value})) is None, name
