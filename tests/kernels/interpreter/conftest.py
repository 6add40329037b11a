"""The Triton kernels themselves: compiled where there is a GPU, else in Triton's interpreter.

The interpreter has to be chosen before the kernels are imported, so these files need a process with
TRITON_INTERPRET=1 and TRANSMAMBA_KERNELS=triton; ../test_interpreter.py starts it. On a GPU they run as they
are, at full sizes. A test that asks for `length` runs at every length there is; `size(full, small)` picks
the rest. `quick(case, ...)` names the combinations of a matrix that tell its code paths apart, each by some
of its parameters; in the interpreter the others are slow, and all of them where there is no case.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
COMPILED = torch.cuda.is_available() and not INTERPRETED
LENGTHS = (1, 2, 63, 64, 65, 197, 1000, 4096) if COMPILED else (1, 18)

Arguments = dict[str, Any]
Results = dict[str, Tensor]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if COMPILED:
        return
    here = Path(__file__).parent
    for item in items:
        if not item.path.is_relative_to(here):
            continue
        if not INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="no GPU, and TRITON_INTERPRET is not 1"))
        elif not is_quick(item):
            item.add_marker(pytest.mark.slow)


def is_quick(item: pytest.Item) -> bool:
    """Whether the item has the parameters of a case of its mark; without a mark it is."""
    mark = item.get_closest_marker("quick")
    if mark is None:
        return True
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return any(all(given[name] == value for name, value in case.items()) for case in mark.args)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    if "length" in metafunc.fixturenames and not any("length" in mark.args[0] for mark in marks):
        metafunc.parametrize("length", LENGTHS)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if COMPILED else "cpu")


@pytest.fixture
def size() -> Callable[[Any, Any], Any]:
    """size(full, small): the first on a GPU, the second in the interpreter."""
    return lambda full, small: full if COMPILED else small


@pytest.fixture(autouse=True, scope="session")
def quicker() -> None:
    if INTERPRETED:
        from quicker import make_quicker

        make_quicker()


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not written is not a number."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        plain = getattr(owner, name)

        def poison(*args: Any, plain: Any = plain, **kwargs: Any) -> Tensor:
            tensor = plain(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(owner, name, poison)


def evaluate(op: Callable[..., Any], arguments: Arguments, device: torch.device) -> Results:
    """Outputs, and gradients of their product with fixed random numbers, by name, in float64 on the CPU."""
    placed = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    leaves = {
        name: value.detach().requires_grad_()
        for name, value in placed.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    outputs = op(**{**placed, **leaves})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device) for y in outputs]
    total = sum((y.double() * w).sum() for y, w in zip(outputs, weights, strict=True))
    total = total + sum(leaf.sum() * 0 for leaf in leaves.values())
    total.backward()
    results = {f"output {i}": y.detach().double().cpu() for i, y in enumerate(outputs)}
    for name, leaf in leaves.items():
        assert leaf.grad is not None, f"{name} has no gradient"
        assert leaf.grad.dtype == leaf.dtype
        results[f"gradient of {name}"] = leaf.grad.double().cpu()
    return results


@pytest.fixture
def agree_on_device(device: torch.device) -> Callable[..., None]:
    """agree_on_device(fast, truth, arguments): `fast` on the device, in the arguments' own dtypes, against
    `truth` of the same numbers in float64 on the CPU; relative errors."""

    def check(
        fast: Callable[..., Any],
        truth: Callable[..., Any],
        arguments: Arguments,
        forward: float = 1e-5,
        gradients: float = 1e-4,
    ) -> None:
        wide = {
            k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in arguments.items()
        }
        expected = evaluate(truth, wide, torch.device("cpu"))
        found = evaluate(fast, arguments, device)
        assert found.keys() == expected.keys()
        for name, right in expected.items():
            assert found[name].isfinite().all(), f"{name} is not finite"
            allowed = (forward if name.startswith("output") else gradients) * right.norm() + 1e-30
            error = (found[name] - right).norm()
            assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"

    return check
