"""Runs of the task questions whose student does not write while it trains: `writing`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_language import llama_folder

from transmamba import UserError
from transmamba.config import load as configs
from transmamba.config.registry import TASKS
from transmamba.errors import ConfigError
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run
from transmamba.training.strategies.strategy import Plain


def recipe(folder: Path, **task: Any) -> Recipe:
    """Of a student that sees nothing, in two steps."""
    if not (folder / "teacher").is_dir():
        llama_folder(folder / "teacher", context=256)
    data = dict(name="scenes", side=16, count_train=40, count_test=8, types=["exist", "count"])
    usual = dict(name="questions", data=data, pictures="none", answer_tokens=3, lookup=20, controls=[])
    values = dict(
        output_dir=str(folder / "run"),
        task=usual | task,
        teacher=dict(name="causal_lm", model=str(folder / "teacher")),
        student=dict(name="hybrid_lm", attention_layers=[0]),
        init=dict(calibration_images=4),
        stages=[dict(name="distill", losses=["cross_entropy"], steps=2, lr=1e-3)],
        trainer=dict(global_batch=4, log_every=1, eval_every=1),
    )
    made: Recipe = configs.parse(Recipe, values, "recipe")
    return made


def watched(folder: Path) -> set[str]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return {key.removeprefix("eval/") for line in lines for key in line if key.startswith("eval/")}


HELD_OUT = dict(validation=0.2, final_split="test")


def test_a_student_in_pieces_is_told_before_it_trains_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plain, "whole", False)  # as FSDP2 and ZeRO-3 say of theirs
    with pytest.raises(UserError, match=r"does not write.*task\.writing: final .* or never"):
        run(recipe(tmp_path, **HELD_OUT), quiet=True)
    assert not (tmp_path / "run").exists()  # nothing was trained, nothing is left


def test_answers_are_measured_at_the_end_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "whole", False)
    results = run(recipe(tmp_path, writing="final", **HELD_OUT), quiet=True)
    assert {"accuracy", "lookup_accuracy", "perplexity"} <= results["student"].keys()
    assert "perplexity" in watched(tmp_path) and "accuracy" not in watched(tmp_path)


@pytest.mark.usefixtures("report_of_a_run")
def test_answers_are_never_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "whole", False)
    results = run(recipe(tmp_path, writing="never"), quiet=True)
    for who in ("student", "teacher"):
        assert "perplexity" in results[who] and "accuracy" not in results[who]
    assert "perplexity" in (tmp_path / "run" / "report.html").read_text()


def test_the_final_split_alone_has_to_be_another() -> None:
    for told in (dict(), dict(validation=0.1), dict(validation=0.1, final_split="validation")):
        with pytest.raises(ConfigError, match=r"writing: final, but the final split, (test|validation), is"):
            configs.parse(TASKS["questions"], {"data": "scenes", "writing": "final", **told}, "task")
