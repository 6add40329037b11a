"""How fast paths are compared with references: outputs and all gradients, relative to the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Arguments = dict[str, Any]
Results = dict[str, Tensor]


def evaluate(op: Callable[..., Any], arguments: Arguments, dtype: torch.dtype) -> Results:
    """Outputs, and gradients of their product with fixed random numbers, by name, in float64."""
    leaves = {
        name: value.detach().to(dtype).requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    outputs = op(**{**arguments, **leaves})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs]
    sum((y.double() * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    results = {f"output {i}": y.detach().double() for i, y in enumerate(outputs)}
    for name, leaf in leaves.items():
        assert leaf.grad is not None, f"{name} has no gradient"
        results[f"gradient of {name}"] = leaf.grad.double()
    return results


def assert_close(found: Results, expected: Results, forward: float, gradients: float) -> None:
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        allowed = (forward if name.startswith("output") else gradients) * truth.norm() + 1e-30
        error = (found[name] - truth).norm()
        assert found[name].isfinite().all(), f"{name} is not finite"
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@pytest.fixture
def agree() -> Callable[..., None]:
    """agree(fast, truth, arguments): `fast` in `dtype` against `truth` in float64, same inputs."""

    def check(
        fast: Callable[..., Any],
        truth: Callable[..., Any],
        arguments: Arguments,
        dtype: torch.dtype = torch.float32,
        forward: float = 1e-5,
        gradients: float = 1e-4,
    ) -> None:
        rounded = {
            name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in arguments.items()
        }
        expected = evaluate(truth, rounded, torch.float64)
        assert_close(evaluate(fast, rounded, dtype), expected, forward, gradients)

    return check


@pytest.fixture
def bytes_saved() -> Callable[[Callable[[], Any]], int]:
    """Bytes of all distinct tensors that autograd keeps for the backward of a call."""

    def count(call: Callable[[], Any]) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = call()
        del result
        return sum(kept.values())

    return count


@pytest.fixture
def mark() -> Callable[..., Arguments]:
    """mark(arguments, "seq_idx", "lengths"): with ids that come back, lengths from 0 to the whole row."""

    def add(arguments: Arguments, *names: str, ids: float = 0.2) -> Arguments:
        batch, length = next(iter(arguments.values())).shape[:2]
        generator = torch.Generator().manual_seed(length)
        found: Arguments = {}
        if "seq_idx" in names:
            changes = torch.rand(batch, length, generator=generator) < ids
            found["seq_idx"] = (changes.cumsum(1) % 3).int()
        if "lengths" in names:
            found["lengths"] = torch.linspace(0, length, batch).long()
        return {**arguments, **found}

    return add


@pytest.fixture
def compiled() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An operator in one graph, forward and backward, without the compiler behind it."""
    torch.compiler.reset()
    return lambda op: torch.compile(op, fullgraph=True, backend="aot_eager")
