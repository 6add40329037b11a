"""The miniature of in-context learning, shorter and smaller: who recalls vectors, and who does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import transmamba
from transmamba.runs.run import load_recipe

ROOT = Path(__file__).parents[1]
SHORTER = (
    "task.function={d: 8, pairs: 8, queries: 4}",
    "task.prompts=256",
    "student.width=32",
    "stages.0.lr=5e-3",
    "stages.0.min_lr=5e-3",
    "trainer.global_batch=32",
    "trainer.eval_every=0",
)
CHANCE = 100 / 8  # one of eight values


def accuracy(folder: Path, architecture: str, steps: int) -> float:
    recipe = load_recipe(
        ROOT / "recipes" / "configs" / "icl_mqar_debug.yaml",
        [f"output_dir={folder}", f"student.architecture={architecture}", f"stages.0.steps={steps}", *SHORTER],
    )
    transmamba.distill(recipe)
    found: float = json.loads((folder / "results.json").read_text())["student"]["accuracy"]
    return found


@pytest.mark.parametrize(("architecture", "steps"), [("transformer", 300), ("mambaformer", 300)])
def test_with_attention_vectors_are_recalled(architecture: str, steps: int, tmp_path: Path) -> None:
    assert accuracy(tmp_path, architecture, steps) > 5 * CHANCE


def test_without_attention_they_are_not_yet(tmp_path: Path) -> None:
    """After as many steps: what becomes of Mamba later depends on its rate and its state
    (docs/in_context.md)."""
    assert accuracy(tmp_path, "mamba", 300) < 2 * CHANCE
