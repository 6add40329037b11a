"""The bidirectional mixer against two loops and a dense matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ssd_inputs import extras, make, two_loops
from transmamba_kernels import bidirectional_ssd


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
@pytest.mark.parametrize("names", [(), ("A_b", "delta_b", "delta_bias")])
@pytest.mark.parametrize("marks", [("seq_idx",), ("lengths",), ("seq_idx", "lengths")])
def test_bidirectional_packed_and_padded(agree, mark, marks, names, limit, branches):
    arguments = mark(extras(make(90, batch=5), *names), *marks, ids=0.03)
    switches = {
        "delta_softplus": "delta_bias" in names,
        "return_branches": branches,
        "quadratic_limit": limit,
    }
    agree(bidirectional_ssd, two_loops, arguments | switches)


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


@pytest.mark.parametrize("path", ["reference", "cpu"])
def test_branch_tokens_are_signed_integers(monkeypatch, path):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", path)
    arguments = make(8) | {"return_branches": True}
    tokens = torch.tensor([3, 0, 1])
    _, ahead, back = bidirectional_ssd(**arguments, branch_tokens=tokens)
    for dtype in (torch.int8, torch.int16, torch.int32):
        _, some_ahead, some_back = bidirectional_ssd(**arguments, branch_tokens=tokens.to(dtype))
        assert torch.equal(some_ahead, ahead) and torch.equal(some_back, back)
    for dtype, kind in ((torch.uint8, "a signed integer"), (torch.bool, "an integer")):
        with pytest.raises(ValueError, match=rf"branch_tokens: dtype {dtype}, expected {kind} type"):
            bidirectional_ssd(**arguments, branch_tokens=tokens.to(dtype))


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


@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
def test_weak_decays_behind_a_strong_one_stay_exact(agree, limit):
    """Sums of log decays grow to thousands, while the differences that count stay small."""
    arguments = make(200)
    arguments["delta"] = arguments["delta"] * 0.05
    arguments["delta"][:, ::50] = 200.0
    arguments["A"] = torch.full_like(arguments["A"], -4.0)
    agree(bidirectional_ssd, two_loops, arguments | {"quadratic_limit": limit}, gradients=1e-3)


@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
def test_half_precision_and_autocast(agree, limit):
    arguments = make(40) | {"quadratic_limit": limit}
    agree(bidirectional_ssd, two_loops, arguments, torch.bfloat16, forward=1e-2, gradients=1e-2)

    def autocast(**a: Any) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return bidirectional_ssd(**a)

    agree(autocast, two_loops, arguments, forward=2e-2, gradients=3e-2)
    assert autocast(**make(9)).dtype == torch.float64


@pytest.mark.parametrize("path", ["reference", "cpu"])
@pytest.mark.parametrize("limit", [0, 1024], ids=["scans", "matrix"])
@pytest.mark.parametrize("names", [(), ("delta_b",)])
@pytest.mark.parametrize("branches", [False, True])
def test_autocast_changes_nothing(monkeypatch, compiled, branches, names, limit, path):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", path)
    arguments = {n: v.float() for n, v in extras(make(20), *names).items()}
    arguments |= {"quadratic_limit": limit, "return_branches": branches}
    expected = bidirectional_ssd(**arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bidirectional_ssd(**arguments)
        again = compiled(bidirectional_ssd)(**arguments) if path == "cpu" else found
    for y, z, right in zip(
        *([t] if isinstance(t, torch.Tensor) else t for t in (found, again, expected)), strict=True
    ):
        assert y.dtype == torch.float32
        assert torch.equal(y, right)
        torch.testing.assert_close(z, right)


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
