"""A token's operators on PyTorch's paths: a mixer's step, norms, an MLP's gate; wrong arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from token_inputs import SHAPES, doubled, formula, token
from transformers.models.bamba.modeling_bamba import BambaRMSNorm
from transmamba_kernels import (
    gated_product,
    mamba2_step,
    normed_gated_product,
    rms_norm,
    silu_mul,
    skinny_linear,
)


@pytest.fixture(params=["reference", "cpu"])
def path(request, monkeypatch):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", request.param)


@pytest.mark.parametrize(
    ("taps", "older", "bias"), [(4, 1, True), (4, 0, False), (1, 0, True), (2, 3, False)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_mixer(path, shape, taps, older, bias):
    arguments = doubled(token(shape, taps=taps, older=older, bias=bias))
    truth = formula(**arguments)
    found = mamba2_step(**arguments)
    for ours, right in zip((found, arguments["conv_state"], arguments["state"]), truth, strict=True):
        torch.testing.assert_close(ours, right)


def test_half_precision(path):
    arguments = token("a head a group")
    half = {n: v.bfloat16() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    half["state"] = arguments["state"].clone()
    truth = formula(**doubled(half))
    found = mamba2_step(**half)
    assert found.dtype == half["conv_state"].dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), truth[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(half["state"].double(), truth[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_is_transformers(dtype):
    """Bit for bit, in one dtype and in two."""
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 5, 24).to(dtype)
    for weight in (torch.randn(24), torch.randn(24).bfloat16()):
        theirs = BambaRMSNorm(24, eps=1e-3)
        theirs.weight = torch.nn.Parameter(weight)
        found = rms_norm(x, weight, 1e-3)
        assert torch.equal(found, theirs(x)) and found.dtype == theirs(x).dtype


def test_norm_by_groups_with_a_gate():
    x, gate, weight = (torch.randn(*shape).double() for shape in ((2, 24), (2, 24), (24,)))
    for group in (24, 6, 1):
        wanted = F.rms_norm((x * F.silu(gate)).unflatten(-1, (-1, group)), (group,), None, 1e-5)
        torch.testing.assert_close(rms_norm(x, weight, 1e-5, gate, group), wanted.flatten(-2) * weight)


def test_have_no_gradients_and_take_what_is_empty():
    x, weight = torch.randn(2, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    assert not rms_norm(x, weight, 1e-5).requires_grad and not silu_mul(x, x).requires_grad
    arguments = token("one group")
    arguments["D"].requires_grad_()
    assert not mamba2_step(**arguments).requires_grad
    for name in ("projected", "conv_state", "state"):
        arguments[name] = arguments[name][:0]
    assert mamba2_step(**arguments).shape == (0, 15)
    assert rms_norm(x[:0], weight, 1e-5).shape == silu_mul(x[:0], x[:0]).shape == (0, 8)
    assert rms_norm(x[:, :0], weight[:0], 1e-5).shape == (2, 0)


def test_the_projection_may_be_given(path):
    """Bit for bit as its product is."""
    arguments = token("B and C shared")
    x, weight = torch.randn(3, 7), torch.randn(arguments["projected"].shape[1], 7)
    twin = arguments | {n: arguments[n].clone() for n in ("conv_state", "state")}
    y = mamba2_step(**arguments | {"projected": x, "in_weight": weight})
    assert torch.equal(y, mamba2_step(**twin | {"projected": F.linear(x, weight)}))
    for name in ("conv_state", "state"):
        assert torch.equal(arguments[name], twin[name])


def test_mixer_compiles_in_one_graph(compiled):
    arguments = token("B and C shared")
    twin = arguments | {n: arguments[n].clone() for n in ("conv_state", "state")}
    torch.testing.assert_close(compiled(mamba2_step)(**twin), mamba2_step(**arguments))
    torch.testing.assert_close(twin["state"], arguments["state"])
    torch.testing.assert_close(twin["conv_state"], arguments["conv_state"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"state": torch.zeros(3, 4, 16)}, "state: shape (3, 4, 16), expected (B, H, P, N)"),
        (
            {"conv_state": torch.zeros(3, 192, 2)},
            "conv_state: shape (3, 192, 2), expected (B, C, S), S at least K-1, = (3, 192, 3)",
        ),
        (
            {"projected": torch.zeros(3, 64)},
            "projected: shape (3, 64), expected (B, 2 H P + 2 G N + H) = (3, 260)",
        ),
        (
            {"conv_weight": torch.zeros(180, 4)},
            "conv_weight: 180 channels, expected H P + 2 G N = 64 + 2 G 16",
        ),
        ({"conv_weight": torch.zeros(160, 4)}, "conv_weight: 3 groups do not divide 4 heads"),
        ({"A_log": torch.zeros(3)}, "A_log: shape (3,), expected (H,) = (4,)"),
        (
            {"in_weight": torch.zeros(260, 8)},
            "projected: shape (3, 260), expected (B, E) = (3, 8)",
        ),
        (
            {"in_weight": torch.zeros(9, 8)},
            "in_weight: shape (9, 8), expected (2 H P + 2 G N + H, E) = (260, 8)",
        ),
        (
            {"in_weight": torch.zeros(260, 260).double()},
            "in_weight: dtype torch.float64, expected torch.float32, as projected has",
        ),
        ({"group_size": 7}, "group_size: 7, expected a divisor of 64"),
        ({"D": torch.zeros(4).int()}, "D: dtype torch.int32, expected a real floating-point type"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], says: str):
    with pytest.raises(ValueError) as error:
        mamba2_step(**token("a head a group") | changes)
    assert says in str(error.value)


def test_wrong_norms_and_gates_are_named():
    x, weight = torch.zeros(2, 6), torch.zeros(6)
    with pytest.raises(ValueError, match=r"gate: shape \(2, 5\), expected \(..., D\) = \(2, 6\)"):
        rms_norm(x, weight, 1e-5, torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"weight: shape \(5,\), expected \(D,\) = \(6,\)"):
        rms_norm(x, weight[:5], 1e-5)
    with pytest.raises(ValueError, match=r"up: shape \(4, 6\), expected \(N, K\) = \(5, 6\)"):
        gated_product(x, torch.zeros(5, 6), torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"gate: dtype torch\.float64, expected torch\.float32, as x has"):
        gated_product(x, torch.zeros(5, 6).double(), torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"weight: shape \(5, 4\), expected \(N, K\) = \(5, 6\)"):
        skinny_linear(x, torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"residual: shape \(1, 5\), expected \(\.\.\., N\) = \(2, 5\)"):
        skinny_linear(x, torch.zeros(5, 6), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"residual: dtype torch\.float64, expected torch\.float32"):
        skinny_linear(x, torch.zeros(5, 6), torch.zeros(2, 5).double())
    with pytest.raises(ValueError, match="group_size: 4, expected a divisor of 6"):
        rms_norm(x, weight, 1e-5, group_size=4)
    with pytest.raises(ValueError, match=r"up: dtype torch\.float64, expected torch\.float32"):
        silu_mul(x, x.double())


def test_gated_product_is_an_mlp_s_first_half():
    x, gate, up = torch.randn(2, 3, 6), torch.randn(5, 6), torch.randn(5, 6)
    assert torch.equal(gated_product(x, gate, up), F.silu(F.linear(x, gate)) * F.linear(x, up))
    assert gated_product(x[:0], gate, up).shape == (0, 3, 5)


def test_skinny_linear_is_a_linear_and_a_sum():
    x, weight, more = torch.randn(2, 3, 6), torch.randn(5, 6), torch.randn(2, 3, 5)
    assert torch.equal(skinny_linear(x, weight), F.linear(x, weight))
    assert torch.equal(skinny_linear(x, weight, more), more + F.linear(x, weight))
    assert skinny_linear(x[:0], weight, more[:0]).shape == (0, 3, 5)


def between(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What stands between a mixer and its MLP's first half: K 7, N 6, F 5."""
    shapes = dict(x=(2, 3, 7), weight=(6, 7), residual=(2, 3, 6), norm_weight=(6,), gate=(5, 6), up=(5, 6))
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def test_a_normed_product_is_its_parts_one_after_the_other(path):
    t = between(torch.float64)
    stream, y = normed_gated_product(**t, eps=1e-3)
    wanted = t["residual"] + t["x"] @ t["weight"].T
    torch.testing.assert_close(stream, wanted)
    normed = F.rms_norm(wanted, (6,), t["norm_weight"], 1e-3)
    torch.testing.assert_close(y, F.silu(normed @ t["gate"].T) * (normed @ t["up"].T))
    empty = {name: value[:0] if name in ("x", "residual") else value for name, value in between().items()}
    assert [part.shape for part in normed_gated_product(**empty, eps=1e-3)] == [(0, 3, 6), (0, 3, 5)]
    t["x"].requires_grad_()
    assert not any(part.requires_grad for part in normed_gated_product(**t, eps=1e-3))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("x", torch.zeros(2, 3, 6), r"weight: shape \(6, 7\), expected \(N, K\) = \(6, 6\)"),
        ("residual", torch.zeros(2, 6), r"residual: shape \(2, 6\), expected \(..., N\) = \(2, 3, 6\)"),
        ("norm_weight", torch.zeros(7), r"norm_weight: shape \(7,\), expected \(N,\) = \(6,\)"),
        ("gate", torch.zeros(5, 7), r"gate: shape \(5, 7\), expected \(F, N\) = \(5, 6\)"),
        ("up", torch.zeros(4, 6), r"up: shape \(4, 6\), expected \(F, N\) = \(5, 6\)"),
        ("norm_weight", torch.zeros(6).half(), "norm_weight: dtype torch.float16, expected torch.float32"),
    ],
)
def test_wrong_arguments_of_a_normed_product_are_named(name: str, value: torch.Tensor, says: str):
    with pytest.raises(ValueError, match=says):
        normed_gated_product(**between() | {name: value}, eps=1e-3)
