"""The shifted multiply-adds against the token-by-token convolution and against F.conv1d."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transmamba_kernels import causal_conv1d, causal_conv1d_update
from transmamba_kernels.causal_conv1d import reference


def make(length: int, taps: int, names: tuple[str, ...] = (), batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length + taps)
    shapes = {
        "x": (batch, length, 5),
        "weight": (5, taps),
        "bias": (5,),
        "initial_state": (batch, 5, taps - 1),
    }
    return {
        n: torch.randn(*shapes[n], generator=generator, dtype=torch.float64) for n in ("x", "weight", *names)
    }


def loop(**arguments: Any) -> Any:
    full: dict[str, Any] = dict.fromkeys(("bias", "activation", "initial_state", "seq_idx", "lengths"))
    full |= {"reverse": False, "return_final_state": False, **arguments}
    y, state = reference.causal_conv1d(**full)
    return (y, state) if full["return_final_state"] else y


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("names", [(), ("bias",), ("bias", "initial_state")])
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (17, 4), (20, 3), (6, 1)])
def test_agrees_with_loop(agree, length, taps, names, activation, reverse):
    agree(causal_conv1d, loop, make(length, taps, names) | {"activation": activation, "reverse": reverse})


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("names", [("bias",), ("initial_state",)])
@pytest.mark.parametrize("marks", [(), ("seq_idx",), ("lengths",), ("seq_idx", "lengths")])
@pytest.mark.parametrize(("length", "taps"), [(2, 4), (17, 4), (9, 2), (6, 1)])
def test_packed_and_padded_rows_and_final_state(agree, mark, length, taps, marks, names, reverse):
    arguments = mark(make(length, taps, names, batch=5), *marks)
    switches = {"activation": "silu", "reverse": reverse, "return_final_state": True}
    agree(causal_conv1d, loop, arguments | switches)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_as_if_it_were_not_there(mark, reverse):
    a = mark(make(9, 4, ("bias", "initial_state"), batch=5), "seq_idx", "lengths")
    y, state = causal_conv1d(**a, reverse=reverse, return_final_state=True)
    for b, end in enumerate(a["lengths"].tolist()):
        row = {n: a[n][b : b + 1, :end] for n in ("x", "seq_idx")}
        row |= {"weight": a["weight"], "bias": a["bias"], "initial_state": a["initial_state"][b : b + 1]}
        expected, end_state = causal_conv1d(**row, reverse=reverse, return_final_state=True)
        torch.testing.assert_close(y[b : b + 1, :end], expected)
        torch.testing.assert_close(state[b : b + 1], end_state)
        assert not y[b, end:].any()


def test_equals_torch_conv1d():
    a = make(17, 4, ("bias",))
    padded = F.conv1d(a["x"].transpose(1, 2), a["weight"][:, None], a["bias"], padding=3, groups=5)
    torch.testing.assert_close(causal_conv1d(**a), padded[..., :17].transpose(1, 2))


def test_reverse_is_flip_of_forward_of_flip():
    a = make(17, 4, ("bias", "initial_state"))
    expected = causal_conv1d(**{**a, "x": a["x"].flip(1)}).flip(1)
    torch.testing.assert_close(causal_conv1d(**a, reverse=True), expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 9])
def test_split_in_two_equals_whole(mark, cut, reverse):
    a = mark(make(17, 4, ("bias", "initial_state")), "seq_idx")
    a["seq_idx"][:, cut] = a["seq_idx"][:, cut - 1]  # a final state is of the sequence that goes on
    parts = [{n: a[n][:, part] for n in ("x", "seq_idx")} for part in (slice(0, cut), slice(cut, None))]
    whole, end = causal_conv1d(**a, reverse=reverse, return_final_state=True)
    outputs, state = [], a["initial_state"]
    for part in parts[::-1] if reverse else parts:
        y, state = causal_conv1d(
            **{**a, **part, "initial_state": state}, reverse=reverse, return_final_state=True
        )
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs[::-1] if reverse else outputs, 1), whole)
    torch.testing.assert_close(state, end)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_is_one_step(dtype, activation):
    a = {n: v.to(dtype) for n, v in make(17, 4, ("bias", "initial_state")).items()}
    expected, end = causal_conv1d(**a, activation=activation, return_final_state=True)
    state = a.pop("initial_state").float()
    x = a.pop("x")
    found = [causal_conv1d_update(x[:, t], state, **a, activation=activation) for t in range(17)]
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(torch.stack(found, 1), expected, **tolerance)
    torch.testing.assert_close(state.to(dtype), end)


def test_gradcheck_non_contiguous():
    a = make(8, 4, ("bias", "initial_state"))
    x = a["x"].transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    leaves = (x, *(a[n].requires_grad_() for n in ("weight", "bias", "initial_state")))
    assert torch.autograd.gradcheck(
        lambda x, w, b, s: causal_conv1d(x, w, b, "silu", s), leaves, fast_mode=True
    )


def test_half_precision(agree):
    arguments = make(17, 4, ("bias",)) | {"activation": "silu"}
    agree(causal_conv1d, loop, arguments, torch.bfloat16, forward=1e-2, gradients=1e-2)
    assert causal_conv1d(*(arguments[n].bfloat16() for n in ("x", "weight", "bias"))).dtype == torch.bfloat16


@pytest.mark.parametrize(("batch", "length"), [(0, 17), (2, 0), (0, 0)])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("op", [causal_conv1d, loop])
def test_nothing_to_convolve(op, batch, length, reverse):
    a = make(17, 4, ("bias", "initial_state"), batch=max(batch, 1))
    a |= {"x": a["x"][:batch, :length], "initial_state": a["initial_state"][:batch].expand(batch, -1, -1)}
    a |= {"seq_idx": torch.zeros(batch, length).int(), "lengths": torch.zeros(batch).int()}
    y, state = op(**a, reverse=reverse, return_final_state=True)
    assert y.shape == (batch, length, 5)
    torch.testing.assert_close(state, a["initial_state"])


@pytest.mark.parametrize("marks", [(), ("seq_idx", "lengths")])
def test_compiles_in_one_graph(agree, mark, compiled, marks):
    arguments = mark(make(9, 4, ("bias", "initial_state")), *marks) | {"activation": "silu"}
    agree(compiled(causal_conv1d), loop, arguments | {"return_final_state": True})


def test_wrong_arguments_are_named():
    a = make(17, 4)
    with pytest.raises(ValueError, match=r"weight: shape \(4, 4\), expected \(D, K\) = \(5, 4\)"):
        causal_conv1d(a["x"], a["weight"][:4])
    with pytest.raises(ValueError, match=r"initial_state: shape \(2, 5, 4\), expected \(B, D, K-1\)"):
        causal_conv1d(**a, initial_state=torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="activation: 'relu', expected None or 'silu'"):
        causal_conv1d(**a, activation="relu")
    with pytest.raises(ValueError, match=r"lengths: dtype torch.float32, expected an integer type"):
        causal_conv1d(**a, lengths=torch.ones(2))
    with pytest.raises(ValueError, match=r"x: dtype torch.int64, expected a real floating-point type"):
        causal_conv1d(a["x"].long(), a["weight"])
    with pytest.raises(ValueError, match="weight: on meta, expected cpu, where x is"):
        causal_conv1d(a["x"], a["weight"].to("meta"))
