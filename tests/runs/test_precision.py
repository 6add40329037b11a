"""tf32 is a setting of the process, which a run makes for itself alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

from transmamba import UserError
from transmamba.runs.run import run
from transmamba.training import step

STAGES = [{"name": "part", "losses": [{"name": "cross_entropy"}], "steps": 2, "lr": 1e-3}]


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How products are computed, at each step."""
    found: list[str] = []
    whole = step.Stepper.step

    def watched(self: Any, *arguments: Any) -> Any:
        found.append(torch.get_float32_matmul_precision())
        return whole(self, *arguments)

    monkeypatch.setattr(step.Stepper, "step", watched)
    return found


@pytest.mark.parametrize(("precision", "within"), [("tf32", "high"), ("no", "medium")])
def test_a_run_s_products_are_its_own(tmp_path: Path, seen: list[str], precision: str, within: str) -> None:
    torch.set_float32_matmul_precision("medium")
    run(harness.tiny_recipe(tmp_path, stages=STAGES, trainer__precision=precision), quiet=True)
    assert seen == [within] * 2
    assert torch.get_float32_matmul_precision() == "medium"


def test_they_are_put_back_after_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("highest")

    def fails(*_: Any) -> None:
        raise UserError(f"products are {torch.get_float32_matmul_precision()}")

    monkeypatch.setattr(step.Stepper, "step", fails)
    with pytest.raises(UserError, match=r"products are high$"):
        run(harness.tiny_recipe(tmp_path, stages=STAGES, trainer__precision="tf32"), quiet=True)
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_recorded_step_takes_it_and_float16_not(tmp_path: Path) -> None:
    harness.tiny_recipe(tmp_path, trainer__precision="tf32", trainer__cuda_graphs=True)
    with pytest.raises(UserError, match="cuda_graphs: true; write precision bf16, tf32 or no"):
        harness.tiny_recipe(tmp_path, trainer__precision="fp16", trainer__cuda_graphs=True)
