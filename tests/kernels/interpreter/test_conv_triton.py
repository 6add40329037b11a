"""The Triton convolutions against the token-by-token one in float64."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from transmamba_kernels.bidirectional_conv1d import bidirectional_conv1d
from transmamba_kernels.causal_conv1d import causal_conv1d, causal_conv1d_update, cpu, reference

PLAIN: dict[str, Any] = {
    **dict.fromkeys(("bias", "activation", "initial_state", "seq_idx", "lengths")),
    "reverse": False,
    "return_final_state": False,
}


EVERYTHING = ("bias", "initial_state", "seq_idx", "lengths")


def make(
    length: int, taps: int, names: tuple[str, ...] = (), batch: int = 2, channels: int = 5
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(length + taps)
    shapes = {
        "x": (batch, length, channels),
        "weight": (channels, taps),
        "bias": (channels,),
        "weight_b": (channels, taps),
        "bias_b": (channels,),
        "initial_state": (batch, channels, taps - 1),
    }
    arguments: dict[str, Any] = {
        n: torch.randn(*shapes[n], generator=generator) for n in ("x", "weight", *names) if n in shapes
    }
    if "lengths" in names:
        arguments["lengths"] = torch.randint(0, length + 1, (batch,), generator=generator)
    if "seq_idx" in names:
        # Ids come back: only a change may cut, never an equal id further off.
        arguments["seq_idx"] = (torch.rand(batch, length, generator=generator) < 0.2).cumsum(1) % 2
    return arguments


def loop(**arguments: Any) -> Any:
    """The reference, or beyond 200 tokens the PyTorch path, which other tests hold against the reference."""
    run = reference if arguments["x"].shape[1] <= 200 else cpu
    y, state = run.causal_conv1d(**{**PLAIN, **arguments})
    return (y, state) if arguments.get("return_final_state") else y


def both(
    x: Tensor, weight: Tensor, weight_b: Tensor, bias: Any = None, bias_b: Any = None, **rest: Any
) -> Any:
    ahead = loop(x=x, weight=weight, bias=bias, **rest)
    return ahead, loop(x=x, weight=weight_b, bias=bias_b, reverse=True, **rest)


@pytest.mark.quick(
    dict(length=18, activation=None, reverse=False),
    dict(length=18, activation="silu", reverse=True),
    dict(length=1, activation="silu", reverse=False),
)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_agrees_at_every_length(agree_on_device, size, length, activation, reverse):
    arguments = make(length, 4, ("bias",), channels=size(200, 5))
    agree_on_device(causal_conv1d, loop, {**arguments, "activation": activation, "reverse": reverse})


@pytest.mark.quick(
    dict(length=18, names=("initial_state",), reverse=True),
    dict(length=18, names=("bias", "seq_idx"), reverse=False),
    dict(length=18, names=EVERYTHING),
    dict(length=1, names=EVERYTHING, reverse=False),
)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("names", [("initial_state",), ("bias", "seq_idx"), ("bias", "lengths"), EVERYTHING])
def test_state_packing_and_padding(agree_on_device, size, length, names, reverse):
    arguments = make(length, 4, names, batch=3, channels=size(200, 5))
    flags = {"activation": "silu", "reverse": reverse, "return_final_state": True}
    agree_on_device(causal_conv1d, loop, {**arguments, **flags})


@pytest.mark.quick(dict(taps=1), dict(taps=2), dict(taps=8))
@pytest.mark.parametrize("taps", [1, 2, 3, 8])
def test_other_widths(agree_on_device, taps):
    flags = {"activation": "silu", "return_final_state": taps > 1}
    arguments = make(13, taps, EVERYTHING)
    if taps == 1:
        del arguments["initial_state"]
    agree_on_device(causal_conv1d, loop, {**arguments, **flags})


@pytest.mark.quick(dict(length=18, names=()), dict(names=("seq_idx", "lengths")))
@pytest.mark.parametrize("names", [(), ("seq_idx",), ("lengths",), ("seq_idx", "lengths")])
def test_both_directions(agree_on_device, size, length, names):
    arguments = make(length, 4, ("bias", "weight_b", "bias_b", *names), channels=size(200, 5))
    agree_on_device(bidirectional_conv1d, both, {**arguments, "activation": "silu"})


def test_both_directions_without_bias(agree_on_device):
    agree_on_device(
        lambda **a: bidirectional_conv1d(bias=None, bias_b=None, **a), both, make(13, 3, ("weight_b",))
    )


@pytest.mark.quick(dict(dtype=torch.bfloat16))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_full_filters(agree_on_device, size, dtype):
    arguments = make(size(197, 13), 4, ("bias", "weight_b", "bias_b"), channels=size(768, 32))
    arguments = {**arguments, "x": arguments["x"].to(dtype), "activation": "silu"}
    agree_on_device(bidirectional_conv1d, both, arguments, forward=1e-2, gradients=1e-2)
    one = {name: arguments[name] for name in ("x", "weight", "bias", "activation")}
    agree_on_device(causal_conv1d, loop, one, forward=1e-2, gradients=1e-2)


def test_padding_is_zero_and_never_read(device):
    a = make(13, 4, ("bias", "weight_b", "bias_b"))
    x = a["x"].clone()
    x[:, 5:] = torch.nan
    x = x.to(device).requires_grad_()
    rest = {k: v.to(device) for k, v in a.items() if k != "x"}
    y, y_b = bidirectional_conv1d(x, **rest, activation="silu", lengths=torch.tensor([5, 3], device=device))
    (y.sum() + y_b.sum()).backward()
    for tensor in (y, y_b, x.grad):
        assert not tensor[0, 5:].any() and not tensor[1, 3:].any()
        assert tensor.isfinite().all()


def test_half_of_a_projection(agree_on_device, device):
    """x as Vim has it: a slice of a wider tensor, its gradient expanded."""
    a = make(13, 4, ("bias",), channels=16)
    wide = torch.cat([a["x"], a["x"]], dim=-1).to(device)
    x = wide[..., 16:].requires_grad_()
    causal_conv1d(x, a["weight"].to(device), a["bias"].to(device)).sum().backward()
    plain = a["x"].clone().requires_grad_()
    loop(x=plain, weight=a["weight"], bias=a["bias"]).sum().backward()
    torch.testing.assert_close(x.grad.cpu(), plain.grad)


@pytest.mark.quick()
def test_backward_is_deterministic(device, size):
    a = {k: v.to(device) for k, v in make(size(197, 13), 4, ("bias",), channels=size(768, 32)).items()}
    found = []
    for _ in range(2):
        leaves = [a[name].clone().requires_grad_() for name in ("x", "weight", "bias")]
        found.append(torch.autograd.grad(causal_conv1d(*leaves, "silu").square().sum(), leaves))
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("taps", "older"), [(1, 0), (2, 0), (4, 0), (4, 1), (2, 3)])
def test_update(device, size, taps, older, dtype):
    """`older`: tokens that the state keeps beyond those that the window needs."""
    a = make(6, taps, ("bias", "initial_state"), batch=3, channels=size(200, 140))
    whole = loop(x=a["x"].double(), weight=a["weight"].double(), bias=a["bias"].double(), activation="silu")
    state = torch.zeros(3, size(200, 140), taps - 1 + older, dtype=dtype, device=device)
    weight, bias = a["weight"].to(device), a["bias"].to(device)
    tokens = [a["x"][:, t].to(device) for t in range(6)]
    y = torch.stack([causal_conv1d_update(x, state, weight, bias, "silu") for x in tokens], 1)
    error = (y.double().cpu() - whole).norm() / whole.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)
    newest = torch.stack(tokens, -1)[..., 6 - state.shape[2] :]
    torch.testing.assert_close(state.float(), newest, rtol=1e-2 * (dtype == torch.bfloat16), atol=0)


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="torch.compile cannot call the interpreter"
)
def test_compiles_whole(device, monkeypatch):
    monkeypatch.undo()  # torch.compile traces torch.empty
    a = {k: v.to(device) for k, v in make(65, 4, ("bias", "weight_b", "bias_b"), channels=64).items()}
    for op, names in (
        (causal_conv1d, ("x", "weight", "bias")),
        (bidirectional_conv1d, ("x", "weight", "bias", "weight_b", "bias_b")),
    ):
        results = []
        for run in (op, torch.compile(op, fullgraph=True)):
            leaves = [a[name].clone().requires_grad_() for name in names]
            y = run(*leaves, activation="silu")
            y = y if isinstance(y, Tensor) else y[0] + y[1]
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
        for p, q in zip(*results, strict=True):
            torch.testing.assert_close(p, q)


@pytest.mark.quick(dict(names=("initial_state", "seq_idx", "lengths")))
@pytest.mark.parametrize("names", [("bias",), ("initial_state", "seq_idx", "lengths")])
def test_registered_ops(device, monkeypatch, names):
    import transmamba_kernels.bidirectional_conv1d.gpu  # noqa: F401  registers both

    monkeypatch.undo()
    a = make(3, 2, (*names, "weight_b"), batch=1)
    a = {k: v.to(device).requires_grad_(v.is_floating_point()) for k, v in a.items()}
    tensors = [a["x"], a["weight"], a.get("bias"), a.get("initial_state"), a.get("seq_idx"), a.get("lengths")]
    torch.library.opcheck(
        torch.ops.transmamba.causal_conv1d_triton.default, (*tensors, True, False, "seq_idx" in names)
    )
    both_ways = [*tensors[:3], a["weight_b"], None, *tensors[4:]]
    torch.library.opcheck(torch.ops.transmamba.bidirectional_conv1d_triton.default, (*both_ways, True))
