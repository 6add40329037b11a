"""The Triton SSD scans at the ends of what numbers hold: far offsets, huge states, small sums behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_ssd_triton import CLOSE, ROUNDED, loop, make, two_loops, ways  # noqa: F401
from torch import Tensor
from transmamba_kernels import bidirectional_ssd, ssd_scan


@pytest.mark.quick(dict(axis="tokens"), dict(axis="heads", ways="fused"))
@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("axis", ["heads", "tokens"])
def test_offsets_beyond_32_bits(agree_on_device, device, axis):
    """Heads or tokens that lie 2^30 or 2^28 elements apart, in memory that is hardly touched."""
    heads = 3 if axis == "heads" else 1
    arguments = make(18 if axis == "heads" else 9, ("z",), heads=heads, groups=heads, batch=1)
    parts = {}
    for start, name in enumerate(("x", "delta", "B", "C", "z")):
        value = arguments[name].bfloat16()
        steps = [0, 2**28, 0, 1] if axis == "tokens" else [0, 64, 2**30, 1]
        parts[name] = (value, steps[: value.dim()], 8 * start)
    # Not by torch.empty, whose memory is poisoned and so touched.
    storage = torch.UntypedStorage(2**32 + 2**13, device=device)
    room = torch.empty(0, dtype=torch.bfloat16, device=device).set_(storage)

    def apart(**given: Any) -> Any:
        for name, (value, steps, start) in parts.items():
            given[name] = Spread.apply(given[name], room.as_strided(value.shape, steps, start))
        return ssd_scan(**given)

    agree_on_device(apart, loop, arguments | {n: v for n, (v, _, _) in parts.items()}, **ROUNDED)


class Spread(torch.autograd.Function):
    """The values, in other memory."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, memory: Tensor) -> Tensor:
        return memory.copy_(values).detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def test_gradient_of_a_final_state_alone(agree_on_device):
    """Few chunks and no initial state: what is summed up in each program has no slope from behind."""
    arguments = make(5, ("return_final_state",), batch=1)
    agree_on_device(lambda **a: ssd_scan(**a)[1], lambda **a: loop(**a)[1], arguments, **CLOSE)


def behind(op: Any, arguments: dict[str, Any], start: int) -> dict[str, Tensor]:
    """y and the gradients of its sum by token, from token `start` on."""
    leaves = {
        n: v.clone().requires_grad_()
        for n, v in arguments.items()
        if isinstance(v, Tensor) and v.is_floating_point()
    }
    y = op(**{**arguments, **leaves})
    y.sum().backward()
    found = {n: leaf.grad for n, leaf in leaves.items() if n in ("x", "delta", "B", "C")}
    return {n: v[:, start:].double().cpu() for n, v in (found | {"y": y.detach()}).items()}


def agree_behind(op: Any, truth: Any, arguments: dict[str, Any], start: int, device: torch.device) -> None:
    wide = {n: v.double() if v.is_floating_point() else v for n, v in arguments.items()}
    expected = behind(truth, wide, start)
    found = behind(op, {n: v.to(device) for n, v in arguments.items()}, start)
    for name, right in expected.items():
        error = (found[name] - right).norm() / right.norm()
        assert error < 1e-3, f"{name}: {error:.2e}"


def test_sums_behind_a_strong_decay_are_exact(device):
    """Large terms in front of it must not drown the small ones behind it, in one chunk."""
    arguments = make(16, ("initial_state",), batch=1)
    arguments["initial_state"] *= 1e6
    arguments["delta"][:, 8] = 1e4
    arguments["x"][:, 8] = 0
    agree_behind(ssd_scan, loop, arguments, 9, device)


@pytest.mark.quick(dict(op=ssd_scan, ways="fused"), dict(op=bidirectional_ssd, ways="sweep"))
@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(("op", "truth"), [(ssd_scan, loop), (bidirectional_ssd, two_loops)])
def test_a_reset_leaves_nothing_of_a_huge_state(device, op, truth):
    arguments = make(34, batch=1)
    arguments["seq_idx"] = (torch.arange(34) >= 20).int()[None]
    arguments["x"][:, :20] *= 1e4
    agree_behind(op, truth, arguments, 20, device)


@pytest.mark.quick(
    dict(op=ssd_scan, scale=10, ways="fused"),
    dict(op=ssd_scan, scale=1000, ways="sweep"),
    dict(op=bidirectional_ssd, scale=10, ways="sweep"),
    dict(op=bidirectional_ssd, scale=1000, ways="fused"),
)
@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize(("op", "truth"), [(ssd_scan, loop), (bidirectional_ssd, two_loops)])
@pytest.mark.parametrize(("scale", "strongest"), [(10, 16), (1000, 1)])
def test_gradients_of_decays_that_forget_everything(agree_on_device, size, op, truth, scale, strongest):
    """Nothing passes over such a step, and A's gradient multiplies by it whatever else is left there."""
    arguments = make(size(197, 34), ("delta_softplus",), batch=1)
    arguments["delta"] = torch.randn(arguments["delta"].shape, generator=torch.Generator().manual_seed(0))
    arguments |= {"delta": arguments["delta"] * scale, "A": -torch.linspace(1, strongest, 2)}
    agree_on_device(op, truth, arguments, **CLOSE)
