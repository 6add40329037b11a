"""The fast selective scan against the plain loop in float64: outputs, every gradient, edges, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transmamba_kernels import selective_scan
from transmamba_kernels.selective_scan import blocks, cpu, reference

OPTIONS: dict[str, set[str]] = {
    "plain": set(),
    "z": {"z"},
    "D": {"D"},
    "delta_bias": {"delta_bias"},
    "softplus": {"delta_bias", "delta_softplus"},
    "states": {"initial_state", "return_final_state"},
    "reverse": {"reverse", "return_final_state"},
    "groups": {"groups"},
    "seq_idx": {"seq_idx", "initial_state"},
    "all": {
        "z",
        "D",
        "delta_bias",
        "delta_softplus",
        "initial_state",
        "return_final_state",
        "groups",
        "seq_idx",
    },
}
OPTIONS["all_reverse"] = OPTIONS["all"] | {"reverse"}
LONG = ("plain", "states", "all", "all_reverse")


def make(length: int, states: int, options: set[str], batch: int = 3, channels: int = 6) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length * 100 + states)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix = (batch, length, 2, states) if "groups" in options else (batch, length, states)
    softplus = "delta_softplus" in options
    delta = normal(batch, length, channels)
    arguments: dict[str, Any] = {
        "u": normal(batch, length, channels),
        "delta": delta if softplus else delta.abs(),
        "A": -normal(channels, states).abs() - 0.1,
        "B": normal(*matrix),
        "C": normal(*matrix),
    }
    if "D" in options:
        arguments["D"] = normal(channels)
    if "z" in options:
        arguments["z"] = normal(batch, length, channels)
    if "delta_bias" in options:
        arguments["delta_bias"] = normal(channels) if softplus else normal(channels).abs()
    if "initial_state" in options:
        arguments["initial_state"] = normal(batch, channels, states)
    if "seq_idx" in options:
        steps = torch.rand(batch, length, generator=generator) < 0.2
        arguments["seq_idx"] = steps.cumsum(1).to(torch.int32)
    for switch in ("delta_softplus", "return_final_state", "reverse"):
        if switch in options:
            arguments[switch] = True
    return arguments


def by_reference(**arguments: Any) -> Any:
    names = ("D", "z", "delta_bias", "initial_state", "seq_idx")
    switches = ("delta_softplus", "return_final_state", "reverse")
    full = {**dict.fromkeys(names), **dict.fromkeys(switches, False), **arguments}
    y, state = reference.selective_scan(**full)
    return (y, state) if full["return_final_state"] else y


@pytest.fixture(params=["one chunk", "many chunks"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shapes of tests fit into one chunk; a tiny buffer gives chunks of 16 steps and blocks of one
    row."""
    if request.param == "many chunks":
        monkeypatch.setattr(blocks, "CPU_BUFFER", 64)
    return request.param


@pytest.mark.parametrize("states", [1, 4, 16])
@pytest.mark.parametrize("length", [1, 7, 64])
@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_loop(agree, monkeypatch, options, length, states):
    monkeypatch.setattr(blocks, "CPU_BUFFER", 64)
    agree(selective_scan, by_reference, make(length, states, OPTIONS[options]))


@pytest.mark.parametrize("states", [1, 4, 16])
@pytest.mark.parametrize("options", LONG)
def test_agrees_with_loop_at_197(agree, options, states):
    agree(selective_scan, by_reference, make(197, states, OPTIONS[options]))


@pytest.mark.parametrize("options", ["all", "all_reverse"])
def test_uneven_blocks_of_rows(agree, monkeypatch, options):
    monkeypatch.setattr(blocks, "CPU_BUFFER", 32 * 6 * 4 * 2)
    arguments = make(45, 4, OPTIONS[options], batch=5)
    plan = blocks.Plan.make(5, 45, 24, torch.device("cpu"), False)
    assert [rows.stop - rows.start for rows in plan.rows] == [1, 2, 2]
    assert [steps.stop - steps.start for steps in plan.steps] == [22, 23]
    agree(selective_scan, by_reference, arguments)


@pytest.mark.parametrize("options", ["plain", "all", "all_reverse"])
def test_gradcheck(cut, options):
    arguments = make(18, 2, OPTIONS[options], batch=2, channels=2)
    names = [n for n, v in arguments.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    leaves = tuple(arguments[name].requires_grad_() for name in names)

    def scan(*values: torch.Tensor) -> Any:
        return selective_scan(**{**arguments, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(scan, leaves, fast_mode=True)


@pytest.mark.parametrize("states", [1, 4])
def test_gradient_through_the_final_state_alone(states):
    arguments = make(20, states, {"initial_state", "z", "D"})
    results = []
    for op in (selective_scan, by_reference):
        leaf = arguments["u"].clone().requires_grad_()
        _, state = op(**{**arguments, "u": leaf}, return_final_state=True)
        state.square().sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("delta", "rate"), [(20.0, -16.0), (1e-4, -16.0), (1e-4, -1e-3), (20.0, -1e-3)])
def test_extreme_decays(agree, cut, delta, rate):
    arguments = make(40, 4, {"initial_state", "return_final_state"})
    arguments["delta"] = torch.full_like(arguments["delta"], delta)
    arguments["A"] = torch.full_like(arguments["A"], rate)
    agree(selective_scan, by_reference, arguments)


def test_extreme_softplus(agree):
    arguments = make(20, 4, {"delta_softplus"})
    arguments["delta"] = arguments["delta"] * 40
    agree(selective_scan, by_reference, arguments)


@pytest.mark.parametrize("reverse", [False, True])
def test_split_in_two_equals_whole(cut, reverse):
    arguments = make(50, 4, {"z", "D", "initial_state"})
    arguments["reverse"] = reverse
    whole, end = selective_scan(**arguments, return_final_state=True)

    def part(start: int, stop: int, state: torch.Tensor) -> Any:
        cuts = {name: arguments[name][:, start:stop] for name in ("u", "delta", "B", "C", "z")}
        return selective_scan(**{**arguments, **cuts, "initial_state": state}, return_final_state=True)

    first, second = ((23, 50), (0, 23)) if reverse else ((0, 23), (23, 50))
    y_1, middle = part(*first, arguments["initial_state"])
    y_2, last = part(*second, middle)
    halves = [y_2, y_1] if reverse else [y_1, y_2]
    torch.testing.assert_close(torch.cat(halves, 1), whole)
    torch.testing.assert_close(last, end)


def test_reverse_is_flip_of_forward_of_flip(cut):
    arguments = make(50, 4, OPTIONS["all"])
    flipped = {name: arguments[name].flip(1) for name in ("u", "delta", "B", "C", "z", "seq_idx")}
    y, state = selective_scan(**arguments, reverse=True)
    y_flipped, state_flipped = selective_scan(**{**arguments, **flipped})
    torch.testing.assert_close(y, y_flipped.flip(1))
    torch.testing.assert_close(state, state_flipped)


def test_packed_sequences_do_not_mix():
    arguments = make(12, 4, {"z"})
    arguments["seq_idx"] = torch.tensor([0] * 5 + [1] * 7).expand(3, 12)
    packed = selective_scan(**arguments)
    del arguments["seq_idx"]
    cuts = (
        {name: v[:, s] if v.dim() == 3 else v for name, v in arguments.items()}
        for s in (slice(5), slice(5, 12))
    )
    torch.testing.assert_close(packed, torch.cat([selective_scan(**part) for part in cuts], 1))


def test_non_contiguous_inputs(agree):
    arguments = make(30, 4, OPTIONS["all"])
    for name in ("u", "delta", "z", "B", "C"):
        arguments[name] = arguments[name].transpose(0, 1).contiguous().transpose(0, 1)
    arguments["u"] = arguments["u"].transpose(1, 2).contiguous().transpose(1, 2)
    arguments["A"] = arguments["A"].T.contiguous().T
    assert not arguments["u"].is_contiguous()
    agree(selective_scan, by_reference, arguments)


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0), (0, 0)])
def test_nothing_to_scan(batch, length):
    arguments = make(max(length, 1), 4, OPTIONS["all"], batch=max(batch, 1))
    for name in ("u", "delta", "z", "B", "C", "seq_idx"):
        arguments[name] = arguments[name][:batch, :length]
    state = arguments["initial_state"] = make(1, 4, {"initial_state"}, batch=batch)["initial_state"]
    leaf = arguments["u"] = arguments["u"].detach().requires_grad_()
    y, end = selective_scan(**arguments)
    assert y.shape == (batch, length, 6)
    torch.testing.assert_close(end, state)
    y.sum().backward()
    assert leaf.grad is not None and leaf.grad.shape == leaf.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(agree, dtype):
    arguments = make(64, 4, OPTIONS["all"] - {"seq_idx"})
    agree(selective_scan, by_reference, arguments, dtype, forward=1e-2, gradients=1e-2)
    half = {n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    y, state = selective_scan(**half)
    assert y.dtype == dtype and state.dtype == torch.float32


def test_autocast_does_not_reach_the_scan():
    arguments = {
        n: v.float().requires_grad_() if isinstance(v, torch.Tensor) else v
        for n, v in make(20, 4, {"z", "D"}).items()
    }
    leaves = list(arguments.values())
    expected = selective_scan(**arguments)
    expected_grads = torch.autograd.grad(expected.sum(), leaves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = selective_scan(**arguments)
        grads = torch.autograd.grad(found.sum(), leaves)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, grads, expected_grads))


def test_no_gradients_nothing_kept(bytes_saved):
    arguments = make(64, 4, {"z"})
    assert bytes_saved(lambda: selective_scan(**arguments)) == 0
    for value in arguments.values():
        value.requires_grad_()
    with torch.no_grad():
        assert bytes_saved(lambda: selective_scan(**arguments)) == 0


def test_memory_is_linear_in_length_and_far_from_all_states(bytes_saved):
    def saved(length: int) -> int:
        arguments = {n: v.float().requires_grad_() for n, v in make(length, 16, {"z", "D"}, 8, 64).items()}
        return bytes_saved(lambda: selective_scan(**arguments))

    short, long = saved(256), saved(1024)
    assert 3.9 * short < long < 4.1 * short
    assert long < 0.5 * (8 * 1024 * 64 * 16 * 4)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("delta", (3, 5, 7), "delta: shape (3, 5, 7), expected (B, L, D) = (3, 5, 6)"),
        ("A", (7, 4), "A: shape (7, 4), expected (D, N) = (6, 4)"),
        ("B", (3, 5, 5), "B: shape (3, 5, 5), expected (B, L, N) = (3, 5, 4)"),
        ("C", (3, 5, 4, 4), "C: 4 groups do not divide 6 channels"),
        ("z", (3, 5), "z: shape (3, 5), expected (B, L, D) = (3, 5, 6)"),
        ("initial_state", (3, 4, 6), "initial_state: shape (3, 4, 6), expected (B, D, N) = (3, 6, 4)"),
        ("u", (3, 5), "u: shape (3, 5), expected (B, L, D)"),
    ],
)
def test_wrong_shapes_are_named(name, shape, says):
    arguments = make(5, 4, {"z", "initial_state"})
    arguments[name] = torch.zeros(shape)
    with pytest.raises(ValueError) as error:
        selective_scan(**arguments)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_bitwise_deterministic():
    arguments = {n: v.float() for n, v in make(64, 16, {"z", "D"}).items()}
    runs = []
    for _ in range(2):
        leaf = arguments["A"].clone().requires_grad_()
        y = cpu.SCAN(
            *({**arguments, "A": leaf}[n] for n in ("u", "delta", "A", "B", "C", "D", "z")),
            None,
            None,
            None,
            True,
            False,
            False,
            True,
        )[0]
        y.sum().backward()
        runs.append((y.detach(), leaf.grad))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
