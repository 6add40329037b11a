"""SSD and its bidirectional form against loops, dense matrices and the selective scan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transmamba_kernels import bidirectional_ssd, selective_scan, ssd_scan
from transmamba_kernels.bidirectional_ssd import reference as bidirectional_reference
from transmamba_kernels.ssd_scan import reference


def make(length: int, states: int = 4, groups: int = 2, heads: int = 4, batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(batch, length, heads, 3),
        "delta": normal(batch, length, heads).abs(),
        "A": -normal(heads).abs() - 0.1,
        "B": normal(batch, length, groups, states),
        "C": normal(batch, length, groups, states),
    }


def loop(return_final_state: bool = False, **arguments: Any) -> Any:
    full = {**dict.fromkeys(("D", "delta_bias", "initial_state")), "delta_softplus": False, "reverse": False}
    y, state = reference.ssd_scan(**{**full, **arguments})
    return (y, state) if return_final_state else y


def two_loops(**arguments: Any) -> Any:
    full: dict[str, Any] = {**dict.fromkeys(("A_b", "delta_b", "delta_bias"))}
    full |= {"delta_softplus": False, "return_branches": False, **arguments}
    full.pop("quadratic_limit", None)
    return bidirectional_reference.bidirectional_ssd(**full)


def extras(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    heads, batch = arguments["A"].shape[0], arguments["x"].shape[0]
    shapes = {
        "D": (heads,),
        "delta_bias": (heads,),
        "initial_state": (batch, heads, 3, arguments["B"].shape[3]),
        "A_b": (heads,),
        "delta_b": arguments["delta"].shape,
    }
    made = {n: torch.randn(*shapes[n], generator=generator, dtype=torch.float64) for n in names}
    if "A_b" in made:
        made["A_b"] = -made["A_b"].abs()
    for name in {"delta_b", "delta_bias"} & made.keys():
        made[name] = made[name].abs()
    return {**arguments, **made}


@pytest.mark.parametrize("length", [1, 7, 64, 65, 197])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("names", [(), ("D", "delta_bias", "initial_state")])
def test_ssd_agrees_with_loop(agree, length, reverse, names):
    arguments = extras(make(length), *names)
    arguments |= {"delta_softplus": bool(names), "return_final_state": True, "reverse": reverse}
    agree(ssd_scan, loop, arguments)


@pytest.mark.parametrize("groups", [1, 4])
def test_ssd_groups(agree, groups):
    agree(ssd_scan, loop, make(70, groups=groups))


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


CASES = [(), ("delta_b",), ("A_b",), ("A_b", "delta_b", "delta_bias")]


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
@pytest.mark.parametrize("names", CASES)
@pytest.mark.parametrize("length", [1, 7, 90])
def test_bidirectional_agrees_with_two_loops(agree, length, names, limit, branches):
    arguments = extras(make(length), *names)
    switches = {
        "delta_softplus": "delta_bias" in names,
        "return_branches": branches,
        "quadratic_limit": limit,
    }
    agree(bidirectional_ssd, two_loops, arguments | switches)


def dense(a: dict[str, Any]) -> torch.Tensor:
    """y by the explicit weights of every pair of tokens, element by element."""
    (batch, length, heads, _), groups = a["x"].shape, a["B"].shape[2]
    A_b, delta_b = a.get("A_b", a["A"]), a.get("delta_b", a["delta"])
    y = torch.zeros_like(a["x"])
    for b in range(batch):
        for h in range(heads):
            g = h // (heads // groups)
            for t in range(length):
                for s in range(length):
                    match = a["C"][b, t, g] @ a["B"][b, s, g]
                    if s < t:
                        kept = torch.exp(a["delta"][b, s + 1 : t + 1, h].sum() * a["A"][h])
                        weight = kept * a["delta"][b, s, h]
                    elif s > t:
                        kept = torch.exp(delta_b[b, t:s, h].sum() * A_b[h])
                        weight = kept * delta_b[b, s, h]
                    else:
                        weight = (a["delta"][b, t, h] + delta_b[b, t, h]) / 2
                    y[b, t, h] += weight * match * a["x"][b, s, h]
    return y


@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
@pytest.mark.parametrize("names", [(), ("A_b", "delta_b")])
def test_bidirectional_equals_dense_matrix(names, limit):
    arguments = extras(make(8), *names)
    y = bidirectional_ssd(**arguments, quadratic_limit=limit)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, dense(arguments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
@pytest.mark.parametrize("names", CASES)
def test_mean_of_branches_is_the_output(names, limit):
    arguments = {n: v.float() for n, v in extras(make(30), *names).items()} | {"quadratic_limit": limit}
    y, ahead, back = bidirectional_ssd(**arguments, return_branches=True)
    torch.testing.assert_close(y, (ahead + back) / 2, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(y, bidirectional_ssd(**arguments))


@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
@pytest.mark.parametrize("names", [(), ("delta_b",)])
def test_branches_of_some_tokens_are_those_of_all(names, limit):
    arguments = extras(make(30), *names) | {"quadratic_limit": limit}
    tokens = torch.tensor([3, 0, 29, 11])
    y, ahead, back = bidirectional_ssd(**arguments, return_branches=True)
    z, some_ahead, some_back = bidirectional_ssd(**arguments, return_branches=True, branch_tokens=tokens)
    torch.testing.assert_close(z, y)
    torch.testing.assert_close(some_ahead, ahead[:, tokens])
    torch.testing.assert_close(some_back, back[:, tokens])


@pytest.mark.parametrize("names", [(), ("delta_b",)])
def test_bidirectional_gradcheck(names):
    arguments = extras(make(7, states=2, heads=2), *names)
    keys = list(arguments)
    leaves = [v.requires_grad_() for v in arguments.values()]
    assert torch.autograd.gradcheck(
        lambda *values: bidirectional_ssd(**dict(zip(keys, values, strict=True))), leaves, fast_mode=True
    )


@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
@pytest.mark.parametrize(("delta", "rate"), [(20.0, -16.0), (1e-4, -16.0), (1e-4, -1e-3)])
def test_extreme_decays(agree, delta, rate, limit):
    arguments = make(80)
    arguments["delta"] = torch.full_like(arguments["delta"], delta)
    arguments["A"] = torch.full_like(arguments["A"], rate)
    agree(bidirectional_ssd, two_loops, arguments | {"quadratic_limit": limit})


def test_weak_decays_behind_a_strong_one_stay_exact(agree):
    """Sums of log decays grow to thousands, while the differences that count stay small."""
    arguments = make(200)
    arguments["delta"] = arguments["delta"] * 0.05
    arguments["delta"][:, ::50] = 200.0
    arguments["A"] = torch.full_like(arguments["A"], -4.0)
    agree(bidirectional_ssd, two_loops, arguments, gradients=1e-3)


@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
def test_half_precision_and_autocast(agree, limit):
    arguments = make(40) | {"quadratic_limit": limit}
    agree(bidirectional_ssd, two_loops, arguments, torch.bfloat16, forward=1e-2, gradients=1e-2)

    def autocast(**a: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return bidirectional_ssd(**a)

    agree(autocast, two_loops, arguments, forward=2e-2, gradients=3e-2)
    assert autocast(**make(9)).dtype == torch.float64


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
@pytest.mark.parametrize("limit", [-1, 1024], ids=["scans", "matrix"])
def test_nothing_to_mix(batch, length, limit):
    a = make(5)
    cut = {n: v[:batch, :length].requires_grad_() if v.dim() > 1 else v for n, v in a.items()}
    y = bidirectional_ssd(**cut, quadratic_limit=limit)
    assert y.shape == (batch, length, 4, 3)
    y.sum().backward()


def test_memory_of_the_scan_is_linear_in_length(bytes_saved):
    def saved(length: int) -> int:
        arguments = {n: v.float().requires_grad_() for n, v in make(length).items()}
        return bytes_saved(lambda: bidirectional_ssd(**arguments))

    assert saved(4096) < 2.1 * saved(2048)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("delta", (2, 5), "delta: shape (2, 5), expected (B, L, H) = (2, 5, 4)"),
        ("A", (4, 4), "A: shape (4, 4), expected (H,) = (4,)"),
        ("B", (2, 5, 3, 4), "B: 3 groups do not divide 4 heads"),
        ("C", (2, 5, 2, 5), "C: shape (2, 5, 2, 5), expected (B, L, G, N) = (2, 5, 2, 4)"),
    ],
)
@pytest.mark.parametrize("op", [ssd_scan, bidirectional_ssd])
def test_wrong_shapes_are_named(op, name, shape, says):
    arguments = make(5) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError) as error:
        op(**arguments)
    assert says in str(error.value)
