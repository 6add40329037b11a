"""What `accelerate launch` may set behind a recipe's back: it changes nothing, or is refused by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import harness
import pytest
import torch

from transmamba.errors import UserError
from transmamba.runs.build import make_accelerator
from transmamba.runs.recipe import Recipe


def run_with(recipe: Recipe, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    harness.run_quietly(recipe)


def test_a_launcher_s_accumulation_changes_no_gradient(tmp_path: Path) -> None:
    """Accelerate divides every loss by it; the trainer counts for itself."""
    plain = harness.tiny_recipe(tmp_path, output_dir=str(tmp_path / "plain"))
    other = replace(plain, output_dir=str(tmp_path / "other"))
    harness.finish(harness.start(run_with, plain, {}))
    harness.finish(harness.start(run_with, other, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}))
    rows = [harness.without_timing(harness.metrics_rows(tmp_path / name)) for name in ("plain", "other")]
    assert rows[0] == rows[1] and any("grad_norm" in row for row in rows[0])


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ACCELERATE_USE_MEGATRON_LM", "yes"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
    ],
)
def test_what_a_recipe_does_not_know_is_refused_by_name(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=variable):
        make_accelerator(harness.tiny_recipe(tmp_path))


def test_a_launcher_that_says_no_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert make_accelerator(harness.tiny_recipe(tmp_path)).num_processes == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs Accelerate joins the processes")
def test_processes_that_think_themselves_alone_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine without a GPU starts ddp.yaml or fsdp2.yaml: each would train alone into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes, but .*cpu\.yaml.*ACCELERATE_USE_CPU=true"):
        make_accelerator(harness.tiny_recipe(tmp_path))
