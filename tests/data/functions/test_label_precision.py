"""Prompts are of float32's own products, whatever the run's are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from transmamba.config.registry import FUNCTIONS
from transmamba.data.functions.numbered import TRAIN, NumberedRows, numbered
from transmamba.training.precision import float32_products


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("several", [False, True])
def test_labels_are_not_of_tf32(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    product = torch.einsum

    def watched(*arguments: Any) -> torch.Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return product(*arguments)

    monkeypatch.setattr(torch, "einsum", watched)
    names = ("linear", "two_layer_network") if several else ("chain_of_thought",)
    rows = NumberedRows([FUNCTIONS[name](d=3, points=5) for name in names])
    numbers = numbered(0, TRAIN, torch.arange(4), 0)
    with float32_products("tf32"):
        rows.make(numbers)
        rows.make_alone(0, numbers[: len(numbers) // 2 * 2 : 2])
        assert torch.get_float32_matmul_precision() == "high", "the run's own are as they were"
    assert len(seen) > 2 and set(seen) == {"highest"}
