"""A backbone without a head as the teacher of a whole training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import run_quietly, tiny_recipe, tiny_vit

from transmamba import load_student
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.runs.build import assemble, make_accelerator
from transmamba.runs.pipeline import Pipeline
from transmamba.runs.recipe import Recipe


def recipe_of(folder: Path, *losses: str) -> Recipe:
    save_model(tiny_vit(0), folder / "teacher")
    return tiny_recipe(folder, stages=[dict(name="distill", losses=list(losses), steps=4, lr=3e-3)])


def trained(recipe: Recipe) -> Pipeline:
    pipeline = Pipeline(assemble(recipe, make_accelerator(recipe)))
    pipeline.train(Path(recipe.output_dir), quiet=True)
    return pipeline


def test_it_teaches_features_and_the_labels_teach_the_classes(tmp_path: Path) -> None:
    """Through a whole run, whose results are of the student alone: nothing of it could be compared."""
    results = run_quietly(recipe_of(tmp_path, "cross_entropy", "feature"))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("cross_entropy" in key for row in rows for key in row), rows
    assert any("feature" in key for row in rows for key in row), rows
    assert 0 <= results["student"]["top1"] <= 100
    assert not {"teacher", "agreement"} & results.keys()
    assert load_student(tmp_path / "run").num_classes == 3


def test_a_loss_on_its_logits_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="loss kl compares classes, but the teacher has 0 and the student 3"):
        trained(recipe_of(tmp_path, "cross_entropy", "kl"))
