"""The decode steps against one step of their scans: states in place, half precision, wrong arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transmamba_kernels import selective_scan, selective_state_update, ssd_scan, ssd_state_update

BATCH, CHANNELS, HEADS, WIDTH, STATES = 3, 6, 4, 5, 8


def normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def of_selective(groups: int | None, full: bool) -> dict[str, Any]:
    matrix = (BATCH, STATES) if groups is None else (BATCH, groups, STATES)
    arguments: dict[str, Any] = {
        "state": normal(BATCH, CHANNELS, STATES),
        "u": normal(BATCH, CHANNELS),
        "delta": normal(BATCH, CHANNELS).abs(),
        "A": -normal(CHANNELS, STATES).abs(),
        "B": normal(*matrix),
        "C": normal(*matrix).flip(0),
    }
    extra = {"D": normal(CHANNELS), "z": normal(BATCH, CHANNELS), "delta_bias": normal(CHANNELS)}
    return arguments | ({**extra, "delta_softplus": True} if full else {})


def of_ssd(groups: int | None, full: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "state": normal(BATCH, HEADS, WIDTH, STATES),
        "x": normal(BATCH, HEADS, WIDTH),
        "delta": normal(BATCH, HEADS).abs(),
        "A": -normal(HEADS).abs(),
        "B": normal(BATCH, groups or 1, STATES),
        "C": normal(BATCH, groups or 1, STATES).flip(0),
    }
    D = normal(HEADS, WIDTH) if groups else normal(HEADS)
    extra = {"D": D, "z": normal(BATCH, HEADS, WIDTH), "delta_bias": normal(HEADS)}
    return arguments | ({**extra, "delta_softplus": True} if full else {})


OPS = {"selective": (selective_state_update, selective_scan, of_selective)}
OPS["ssd"] = (ssd_state_update, ssd_scan, of_ssd)
BY_TOKEN = ("u", "x", "delta", "B", "C", "z")


def one_step(scan: Any, arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    a = {n: v.unsqueeze(1) if n in BY_TOKEN else v for n, v in arguments.items()}
    state = a.pop("state")
    y, state = scan(**a, initial_state=state, return_final_state=True)
    return y.squeeze(1), state


@pytest.fixture(params=["reference", "cpu"])
def path(request, monkeypatch):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", request.param)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("name", OPS)
def test_is_one_step_of_the_scan(path, name, groups, full):
    update, scan, make = OPS[name]
    arguments = make(groups, full)
    y, state = one_step(scan, {**arguments, "state": arguments["state"].clone()})
    torch.testing.assert_close(update(**arguments), y)
    torch.testing.assert_close(arguments["state"], state)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPS)
def test_half_precision(path, name, state_dtype):
    update, scan, make = OPS[name]
    exact = make(2, True)
    half = {n: v.bfloat16() if isinstance(v, torch.Tensor) else v for n, v in exact.items()}
    half["A"], half["state"] = exact["A"].float(), exact["state"].to(state_dtype)
    y, state = one_step(scan, {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in half.items()})
    found = update(**half)
    assert found.dtype == torch.bfloat16 and half["state"].dtype == state_dtype
    torch.testing.assert_close(found.double(), y, rtol=1e-2, atol=1e-2)
    rounding = 1e-2 if state_dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(half["state"].double(), state, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", OPS)
def test_state_may_be_a_strided_view(path, name):
    update, _, make = OPS[name]
    arguments = make(None, True)
    expected_state = arguments["state"].clone()
    expected = update(**{**arguments, "state": expected_state})
    room = torch.zeros(BATCH, 2, *arguments["state"].shape[1:], dtype=torch.float64)
    room[:, 1] = arguments["state"]
    torch.testing.assert_close(update(**{**arguments, "state": room[:, 1]}), expected)
    torch.testing.assert_close(room[:, 1], expected_state)
    assert not room[:, 0].any()


@pytest.mark.parametrize("name", OPS)
def test_compiles_and_has_no_gradients(compiled, name):
    update, _, make = OPS[name]
    arguments = make(2, True)
    twin = arguments | {"state": arguments["state"].clone(), "A": arguments["A"].requires_grad_()}
    y = compiled(update)(**twin)
    assert not y.requires_grad
    torch.testing.assert_close(y, update(**arguments))
    torch.testing.assert_close(twin["state"], arguments["state"])


@pytest.mark.parametrize("name", OPS)
def test_empty_batch(path, name):
    update, _, make = OPS[name]
    arguments = make(2, False)
    empty = {n: v[:0] if n in (*BY_TOKEN, "state") else v for n, v in arguments.items()}
    assert update(**empty).shape[0] == 0


@pytest.mark.parametrize(
    ("name", "argument", "value", "says"),
    [
        (
            "selective",
            "state",
            torch.zeros(3, 8, 6),
            "state: shape (3, 8, 6), expected (B, D, N) = (3, 6, 8)",
        ),
        ("selective", "B", torch.zeros(3, 4, 8), "B: 4 groups do not divide 6 channels"),
        ("selective", "C", torch.zeros(3, 2, 8), "C: shape (3, 2, 8), expected as many groups as B"),
        ("ssd", "delta", torch.zeros(3, 6), "delta: shape (3, 6), expected (B, H) = (3, 4)"),
        ("ssd", "A", torch.zeros(4).int(), "A: dtype torch.int32, expected a real floating-point type"),
        ("ssd", "x", torch.zeros(3, 4, 5, device="meta"), "x: on meta, expected cpu, where state is"),
    ],
)
def test_wrong_arguments_are_named(name, argument, value, says):
    update, _, make = OPS[name]
    with pytest.raises(ValueError) as error:
        update(**make(None, False) | {argument: value})
    assert says in str(error.value)
