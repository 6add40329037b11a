"""bench recipe: what it times is the trainer's own step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import metrics_rows, run_quietly, tiny_recipe
from small_language import TEXTS, llama_folder, texts_file

from transmamba.bench.step import bench_recipe, bench_table
from transmamba.config.load import parse
from transmamba.core.batch import Batch
from transmamba.errors import UserError
from transmamba.runs.recipe import Recipe
from transmamba.training.step import Stepped, Stepper

STAGE = dict(name="distill", losses=["cross_entropy", "kl", "feature"], steps=2, lr=1e-30, min_lr=0.0)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Stepper, list[Batch], Stepped]]:
    """Every step that is taken, with its micro-batches and what came of it."""
    taken = []
    real = Stepper.step

    def step(self: Stepper, micro: list[Batch], number: int, *asked: Any) -> Stepped:
        done = real(self, micro, number, *asked)
        taken.append((self, list(micro), done))
        return done

    monkeypatch.setattr(Stepper, "step", step)
    return taken


def test_its_step_is_that_of_a_run(tmp_path: Path, steps: list[Any]) -> None:
    """The same losses as the first step of a run of the recipe: batches, seeds, counts, dropped paths."""
    trainer = dict(global_batch=8, micro_batch=4, log_every=1, eval_every=0, save_every=0)
    recipe = tiny_recipe(tmp_path, init=None, stages=[STAGE], trainer=trainer)
    result = bench_recipe(recipe, steps=1)
    assert result["batch_size"] == 8 and result["overhead"] > 0
    whole = [done for stepper, _, done in steps if stepper.distiller.token_fraction == 1]
    quarter = [done for stepper, _, done in steps if stepper.distiller.token_fraction == 0.25]
    assert len(whole) == len(quarter) > 1 and all(done.moved for done in whole + quarter)
    assert all(len(micro) == 2 and {len(batch) for batch in micro} == {4} for _, micro, _ in steps)
    steps.clear()
    run_quietly(recipe)
    rows = [row for row in metrics_rows(tmp_path / "run") if "loss" in row]
    assert whole[0].total == pytest.approx(rows[0]["loss"], rel=1e-4)
    assert rows[1]["loss"] != pytest.approx(rows[0]["loss"], rel=1e-3), "another step draws otherwise"
    assert "cross_entropy_step" in bench_table(result)


def test_the_kinds_leave_each_other_what_they_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share the student: a stage that trains its mixers alone does so after a step that trains all."""
    moving: list[set[str]] = []
    real = Stepper.step

    def step(self: Stepper, micro: list[Batch], number: int, *asked: Any) -> Stepped:
        student = self.distiller.student
        moving.append({name for name, parameter in student.named_parameters() if parameter.requires_grad})
        return real(self, micro, number, *asked)

    monkeypatch.setattr(Stepper, "step", step)
    stage = dict(STAGE, losses=["mixer"], trainable="mixers")
    bench_recipe(tiny_recipe(tmp_path, stages=[stage], trainer=dict(global_batch=4)), steps=1)
    assert len(moving) > 2 and all(names and all("mixer" in name for name in names) for names in moving)


def test_of_a_language_model(tmp_path: Path, steps: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step too is that of a run; rows of text have no quarter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teacher, texts = llama_folder(tmp_path / "llama"), texts_file(tmp_path / "texts.jsonl", TEXTS * 8)
    recipe = parse(
        Recipe,
        dict(
            output_dir=str(tmp_path / "run"),
            task=dict(name="language", data=dict(name="text", train=texts), block=32, validation=0.2),
            teacher=dict(name="causal_lm", model=str(teacher)),
            student=dict(name="hybrid_lm", attention_layers=[0]),
            init=None,
            stages=[dict(name="kl", losses=["kl"], steps=1, lr=1e-30, min_lr=0.0, trainable="all")],
            trainer=dict(global_batch=4, micro_batch=2, log_every=1),
        ),
        "a test",
    )
    result = bench_recipe(recipe, steps=1)
    assert result["tokens_per_second"] == pytest.approx(4 * 32 / result["seconds"]["distillation_step"])
    assert "overhead_quarter" not in result and "tokens/s" in bench_table(result)
    first = steps[0][2].total
    steps.clear()
    run_quietly(recipe)
    assert steps[0][2].total == pytest.approx(first, rel=1e-5)


def test_losses_that_standardise_are_measured(tmp_path: Path, steps: list[Any]) -> None:
    stage = dict(STAGE, losses=[dict(name="feature", standardize=True)])
    bench_recipe(tiny_recipe(tmp_path, stages=[stage], trainer=dict(global_batch=4)), steps=1)
    assert steps and all(torch.isfinite(torch.tensor(done.total)) for _, _, done in steps)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    with pytest.raises(UserError, match="steps is 0"):
        bench_recipe(recipe, steps=0)
    alone = dict(stages=[dict(STAGE, losses=["cross_entropy"])], init=None, teacher=None)
    with pytest.raises(UserError, match="names no teacher"):
        bench_recipe(tiny_recipe(tmp_path, **alone))
