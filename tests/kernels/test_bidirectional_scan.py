"""Both directions in one call against two reference scans with explicit flips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transmamba_kernels import bidirectional_scan
from transmamba_kernels.bidirectional_scan import cpu
from transmamba_kernels.selective_scan import reference


def make(length: int, groups: int | None, without: tuple[str, ...] = ()) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch, channels, states = 2, 6, 4
    matrix = (batch, length, states) if groups is None else (batch, length, groups, states)
    arguments: dict[str, Any] = {"z": normal(batch, length, channels)}
    for end in ("", "_b"):
        arguments["u" + end] = normal(batch, length, channels)
        arguments["delta" + end] = normal(batch, length, channels)
        arguments["A" + end] = -normal(channels, states).abs() - 0.1
        arguments["B" + end] = normal(*matrix)
        arguments["C" + end] = normal(*matrix)
        arguments["D" + end] = normal(channels)
        arguments["delta_bias" + end] = normal(channels)
    return {n: v for n, v in arguments.items() if n not in without} | {"delta_softplus": True}


def by_two_flipped_scans(**a: Any) -> Any:
    """(merged, forward, backward), gated, with the flips written out."""

    def scan(end: str, flip: bool) -> torch.Tensor:
        turn = (lambda x: x.flip(1)) if flip else (lambda x: x)
        u, delta, B, C = (turn(a[name + end]) for name in ("u", "delta", "B", "C"))
        bias, D = a.get("delta_bias" + end), a.get("D" + end)
        y, _ = reference.selective_scan(
            u, delta, a["A" + end], B, C, D, None, bias, True, None, None, False, False
        )
        return turn(y) * F.silu(a["z"]) if "z" in a else turn(y)

    ahead, back = scan("", False), scan("_b", True)
    return ((ahead + back) / 2, ahead, back) if a.get("return_branches") else (ahead + back) / 2


@pytest.fixture(params=["apart", "together"])
def way(request, monkeypatch):
    monkeypatch.setattr(cpu, "FEW", 0 if request.param == "apart" else 1 << 30)


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize(
    ("length", "groups", "without"),
    [(1, None, ()), (7, None, ("z",)), (33, 2, ()), (64, None, ("D_b", "delta_bias")), (9, 3, ("D", "D_b"))],
)
def test_agrees_with_two_flipped_loops(agree, way, length, groups, without, branches):
    arguments = make(length, groups, without) | {"return_branches": branches}
    agree(bidirectional_scan, by_two_flipped_scans, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_of_branches_is_the_merged_output(way, dtype):
    arguments = {n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in make(20, None).items()}
    merged, ahead, back = bidirectional_scan(**arguments, return_branches=True)
    assert torch.equal(merged, (ahead + back) / 2)
    assert merged.dtype == dtype
    rounding = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(merged, bidirectional_scan(**arguments), rtol=rounding, atol=rounding)


def test_empty_batch(way):
    arguments = {n: v[:0] if getattr(v, "dim", int)() == 3 else v for n, v in make(5, None).items()}
    assert bidirectional_scan(**arguments).shape == (0, 5, 6)


def test_wrong_shapes_are_named():
    arguments = make(5, None)
    with pytest.raises(ValueError, match=r"delta_b: shape \(2, 4, 6\), expected \(B, L, D\) = \(2, 5, 6\)"):
        bidirectional_scan(**{**arguments, "delta_b": arguments["delta_b"][:, :4]})
    shorter = {name: arguments[name][:, :4] for name in ("u_b", "delta_b", "B_b", "C_b")}
    with pytest.raises(ValueError, match=r"u_b: shape \(2, 4, 6\), expected that of u, \(2, 5, 6\)"):
        bidirectional_scan(**{**arguments, **shorter})
    with pytest.raises(ValueError, match=r"u_b: dtype torch.float64, expected that of u, torch.float32"):
        bidirectional_scan(**{**arguments, "u": arguments["u"].float(), "u_b": arguments["u_b"].double()})
