"""A run of the task `questions` from recipe to report: the baseline that sees nothing, a language model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_language import llama_folder

from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run


@pytest.mark.usefixtures("report_of_a_run")
def test_a_run_learns_watches_measures_and_is_measured_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher, folder = llama_folder(tmp_path / "teacher", context=256), tmp_path / "run"
    values = dict(
        output_dir=str(folder),
        task=dict(
            name="questions",
            data=dict(name="scenes", side=16, count_train=40, count_test=8, types=["exist", "count"]),
            pictures="none",
            validation=0.2,
            final_split="test",
            watched_questions=4,
            answer_tokens=3,
            lookup=20,
        ),
        teacher=dict(name="causal_lm", model=str(teacher)),
        student=dict(name="hybrid_lm", attention_layers=[0]),
        init=dict(calibration_images=4),
        stages=[dict(name="distill", losses=["cross_entropy", "kl"], steps=2, lr=1e-3)],
        trainer=dict(global_batch=4, log_every=1, eval_every=2),
    )
    run(configs.parse(Recipe, values, "recipe"))
    results = json.loads((folder / "results.json").read_text())
    measured = {"accuracy", "accuracy_count", "lookup_accuracy", "question_control", "unknown", "kl"}
    assert measured <= results["student"].keys() & results["teacher"].keys()
    assert results["difference"]["accuracy"]["items"] == 8 and "same_answer" in results["agreement"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    watched = [line for line in lines if "eval/accuracy" in line]
    assert watched and not any("eval/lookup_accuracy" in line for line in watched)
    page = (folder / "report.html").read_text()
    for said in ("by a table of training ones", "asked another item", "Answers by type of question"):
        assert said in page
    capfd.readouterr()
    assert main(["evaluate", str(folder), "--task", "questions", "--device", "cpu", "--json"]) == 0
    again = json.loads(capfd.readouterr().out)["student"]
    for key in ("accuracy", "question_control", "lookup_accuracy", "nats_per_token"):
        assert again[key] == pytest.approx(results["student"][key], rel=1e-5)
