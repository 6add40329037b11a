"""The Triton decode steps against the references in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transmamba_kernels import selective_state_update, ssd_state_update
from transmamba_kernels.selective_state_update import reference as selective
from transmamba_kernels.ssd_state_update import reference as ssd


def check(op: Any, truth: Any, arguments: dict[str, Any], device: torch.device, allowed: float) -> None:
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in arguments.items()}
    expected = truth(**wide)
    placed = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    found = op(**placed)
    assert found.dtype == (arguments["u"] if "u" in arguments else arguments["x"]).dtype
    for name, ours, right in (("y", found, expected), ("state", placed["state"], wide["state"])):
        assert ours.isfinite().all(), name
        error = (ours.double().cpu() - right).norm() / right.norm()
        assert error < allowed, f"{name}: {error:.2e}"


def draw(shapes: dict[str, tuple[int, ...] | None], seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Any] = {}
    for name, shape in shapes.items():
        drawn[name] = None if shape is None else torch.randn(shape, generator=generator)
    drawn["A"] = -drawn["A"].exp()
    drawn["delta"] = 4 * drawn["delta"]
    return drawn


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("channels", "states", "groups"), [(20, 4, 0), (24, 16, 3), (70, 5, 1), (40, 64, 2)])
def test_selective(device, size, channels, states, groups, given):
    batch, channels = size(65, 3), channels * size(16, 1)
    matrix = (batch, groups, states) if groups else (batch, states)
    shapes: dict[str, Any] = {
        "state": (batch, channels, states),
        "u": (batch, channels),
        "delta": (batch, channels),
        "A": (channels, states),
        "B": matrix,
        "C": matrix,
        "D": (channels,) if given else None,
        "z": (batch, channels) if given else None,
        "delta_bias": (channels,) if given else None,
    }
    arguments = {**draw(shapes, channels), "delta_softplus": True}
    check(selective_state_update, loop_selective, arguments, device, 1e-5)


def loop_selective(**arguments: Any) -> Tensor:
    return selective.selective_state_update(**arguments)


def loop_ssd(**arguments: Any) -> Tensor:
    return ssd.ssd_state_update(**arguments)


@pytest.mark.parametrize("skip", [None, "heads", "channels"])
@pytest.mark.parametrize(("width", "states", "groups"), [(6, 5, 1), (8, 16, 2), (64, 128, 4)])
def test_ssd(device, size, width, states, groups, skip):
    batch, heads = size(65, 2), 4 * size(4, 1)
    shapes: dict[str, Any] = {
        "state": (batch, heads, width, states),
        "x": (batch, heads, width),
        "delta": (batch, heads),
        "A": (heads,),
        "B": (batch, groups, states),
        "C": (batch, groups, states),
        "D": {None: None, "heads": (heads,), "channels": (heads, width)}[skip],
        "z": (batch, heads, width) if skip else None,
        "delta_bias": (heads,) if skip else None,
    }
    arguments = {**draw(shapes, width), "delta_softplus": skip is not None}
    if not arguments["delta_softplus"]:
        arguments["delta"] = arguments["delta"].abs()
    check(ssd_state_update, loop_ssd, arguments, device, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(device, dtype):
    shapes: dict[str, Any] = dict(
        state=(3, 24, 16), u=(3, 24), delta=(3, 24), A=(24, 16), B=(3, 16), C=(3, 16), D=(24,), z=(3, 24)
    )
    arguments = draw(shapes, 0)
    halves = {k: v.to(dtype) if k in ("state", "u", "B", "C", "z") else v for k, v in arguments.items()}
    halves = {**halves, "delta_bias": None, "delta_softplus": True}
    check(selective_state_update, loop_selective, halves, device, 1e-2)


def test_strided_state_and_inputs(device):
    """A state whose states lie apart, and inputs cut out of a projection."""
    shapes: dict[str, Any] = dict(state=(3, 20, 8), u=(3, 40), delta=(3, 40), A=(20, 8), B=(3, 16), C=(3, 16))
    a = draw(shapes, 1)
    cut = {"u": a["u"][:, 20:], "delta": a["delta"][:, :20], "B": a["B"][:, 8:], "C": a["C"][:, ::2]}
    state = a["state"].transpose(1, 2).contiguous().transpose(1, 2)
    rest = {**dict.fromkeys(("D", "z", "delta_bias")), "delta_softplus": True}
    check(selective_state_update, loop_selective, {**cut, "state": state, "A": a["A"], **rest}, device, 1e-5)


def test_cuda_graph(device):
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    shapes: dict[str, Any] = dict(
        state=(4, 8, 64, 128), x=(4, 8, 64), delta=(4, 8), A=(8,), B=(4, 1, 128), C=(4, 1, 128)
    )
    a = {k: v.to(device) for k, v in draw(shapes, 2).items()}
    eager, graphed = a["state"].clone(), a["state"].clone()
    rest = {k: v for k, v in a.items() if k != "state"}
    expected = [ssd_state_update(eager, **rest, delta_softplus=True) for _ in range(3)][-1]
    ssd_state_update(graphed.clone(), **rest, delta_softplus=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ssd_state_update(graphed, **rest, delta_softplus=True)
    for _ in range(3):
        graph.replay()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(graphed, eager)


def test_registered_ops(device, monkeypatch):
    import transmamba_kernels.selective_state_update.gpu
    import transmamba_kernels.ssd_state_update.gpu  # noqa: F401

    monkeypatch.undo()
    options = (None, None, None, True)
    shapes: dict[str, Any] = dict(state=(2, 6, 4), u=(2, 6), delta=(2, 6), A=(6, 4), B=(2, 4), C=(2, 4))
    tensors = tuple(x.to(device) for x in draw(shapes, 3).values())
    torch.library.opcheck(torch.ops.transmamba.selective_state_update_triton.default, (*tensors, *options))
    shapes = dict(state=(2, 2, 3, 4), x=(2, 2, 3), delta=(2, 2), A=(2,), B=(2, 1, 4), C=(2, 1, 4))
    tensors = tuple(x.to(device) for x in draw(shapes, 3).values())
    torch.library.opcheck(torch.ops.transmamba.ssd_state_update_triton.default, (*tensors, *options))
