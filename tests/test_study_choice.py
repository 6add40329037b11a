"""scripts/study.py's runs of seconds: a label that other runs choose, and processes that go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import harness
import pytest
import yaml

from transmamba.config import load as configs

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import study as studies  # noqa: E402
import study_worker  # noqa: E402
from study_choice import Choice  # noqa: E402
from study_file import name_of  # noqa: E402
from study_runner import LARGE, Runner  # noqa: E402


def data(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(root),
        "common": ["config=c.yaml"],
        "axes": {
            "part": {"held": ["a=1"], "test": ["a=2"]},
            "task": {"x": [], "y": []},
            "rate": {"low": [], "mid": [], "high": []},
            "seed": {"s0": [], "s1": []},
        },
        "cells": [{"part": "held", "seed": "s0"}, {"part": "test"}],
        "choose": {"axis": "rate", "by": {"part": "held", "seed": "s0"}, "for": {"part": "test"}},
        "report": {"metric": "top1", "better": "up", "rows": ["rate"], "columns": "task"},
        **changes,
    }


def write(root: Path, name: str, value: float | None, **more: float | None) -> None:
    (root / name).mkdir(parents=True)
    (root / name / "results.json").write_text(json.dumps({"student": {"top1": value, **more}}))


def names(cells: list[dict[str, str]]) -> list[str]:
    return [name_of(cell) for cell in cells]


def test_a_rate_is_that_of_the_best_run_on_held_out_data_alone(tmp_path: Path) -> None:
    study = studies.Study(data(tmp_path))
    choice = Choice.of(study)
    assert names(choice.before(study.cells)) == [
        f"held.{task}.{rate}.s0" for task in "xy" for rate in ("low", "mid", "high")
    ]
    assert choice.chosen(study.cells) == []
    for rate, held, test in (("low", 50.0, 99.0), ("mid", 60.0, 1.0), ("high", 60.0, 99.0)):
        write(tmp_path, f"held.x.{rate}.s0", held)
        write(tmp_path, f"test.x.{rate}.s0", test)  # whatever is there, it does not choose
    assert names(choice.chosen(study.cells)) == ["test.x.mid.s0", "test.x.mid.s1"]
    write(tmp_path, "held.y.high.s0", 1.0)
    write(tmp_path, "held.y.low.s0", None)  # it diverged
    assert names(choice.chosen(study.cells))[2:] == ["test.y.high.s0", "test.y.high.s1"]
    assert choice.told(study.cells) == choice.chosen(study.cells), "no run at a rate that has lost"
    some = [cell for cell in study.cells if cell["task"] == "y" and cell["part"] == "test"]
    assert names(choice.before(some)) == [f"held.y.{rate}.s0" for rate in ("low", "mid", "high")]


def test_labels_that_are_passed_over_are_said_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = studies.Study(data(tmp_path / "out"))
    for name, value in (("x.low", 50.0), ("x.mid", 60.0), ("x.high", None), ("y.low", 1.0)):
        write(tmp_path / "out", f"held.{name}.s0", value)
    choice = Choice.of(study)
    said = "choose: rate: passed over: high of x (diverged); mid, high of y (not finished)"
    assert choice.passed_over(study.cells) == said
    some = [cell for cell in study.cells if (cell["task"], cell["rate"]) in {("x", "mid"), ("y", "low")}]
    assert choice.passed_over(some) == "", "of those that are asked for"
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(data(tmp_path / "out"), sort_keys=False))
    assert studies.main([str(path), "--table"]) == 0
    assert capsys.readouterr().err == f"{path}: {said}\n"
    for name in ("y.mid", "y.high"):
        write(tmp_path / "out", f"held.{name}.s0", 1.0)
    assert choice.passed_over(study.cells) == "choose: rate: passed over: high of x (diverged)"
    many = data(tmp_path / "many", axes={**data(tmp_path)["axes"], "task": {f"t{n}": [] for n in range(9)}})
    line = Choice.of(studies.Study(many)).passed_over(studies.Study(many).cells)
    assert line.startswith("choose: rate: passed over: low, mid, high of t0 (not finished); ")
    assert line.endswith("of t5 (not finished); and 3 more")


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_a_mistake_of_what_will_be_chosen_is_found_before_what_chooses_is_run(
    words: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Runner, "run_all", lambda *_: pytest.fail("runs that choose are run"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(configs.dump(harness.tiny_recipe(tmp_path))))
    axes = {"part": {"held": [], "test": ["stages.0.lrr=1"]}, "rate": {"low": [], "high": []}}
    choose = {"axis": "rate", "by": {"part": "held"}, "for": {"part": "test"}}
    report = {"metric": "top1", "better": "up", "rows": ["rate"], "columns": "part"}
    given = data(tmp_path / "out", axes=axes, cells=None, choose=choose, report=report)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**given, "common": [f"config={tmp_path / 'c.yaml'}"]}))
    assert studies.main([str(path), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "test." in error and "did you mean 'lr'" in error


def test_where_nothing_is_chosen_nothing_is_passed_over(tmp_path: Path) -> None:
    study = studies.Study(data(tmp_path, choose=None))
    assert Choice.of(study).passed_over(study.cells) == ""


def test_a_lower_metric_may_choose(tmp_path: Path) -> None:
    report = {"metric": "nll", "better": "down", "rows": ["rate"], "columns": "task"}
    study = studies.Study(data(tmp_path, report=report))
    for rate, value in (("low", 3.0), ("mid", 2.0), ("high", None)):
        write(tmp_path, f"held.x.{rate}.s0", 50.0, nll=value)
    assert names(Choice.of(study).chosen(study.cells)) == ["test.x.mid.s0", "test.x.mid.s1"]


def test_the_mean_of_a_few_tasks_chooses_for_all_of_them(tmp_path: Path) -> None:
    by = {"part": "held", "seed": "s0", "task": ["x", "y"]}
    said = {"axis": "rate", "by": by, "for": {"part": "test"}}
    tasks: dict[str, list[Any]] = {"x": [], "y": [], "z": []}
    axes = {**data(tmp_path)["axes"], "task": tasks}
    study = studies.Study(data(tmp_path, choose=said, axes=axes, cells=[{"part": "test"}]))
    for rate, x, y in (("low", 90.0, 10.0), ("mid", 40.0, 65.0), ("high", 99.0, None)):
        write(tmp_path, f"held.x.{rate}.s0", x)
        if rate != "mid":
            write(tmp_path, f"held.y.{rate}.s0", y)
    choice = Choice.of(study)  # mid is not there yet, and high has diverged on y
    assert {name.split(".")[2] for name in names(choice.chosen(study.cells))} == {"low"}
    write(tmp_path, "held.y.mid.s0", 65.0)
    assert names(choice.chosen(study.cells)) == [f"test.{task}.mid.s{k}" for task in "xyz" for k in (0, 1)]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "axis": ({"axis": "rates", "by": {"part": "held"}, "for": {"part": "test"}}, "unknown axis 'rates'"),
    "label": (
        {"axis": "rate", "by": {"part": "hold"}, "for": {"part": "test"}},
        "by: part: hold is no label",
    ),
    "same": (
        {"axis": "rate", "by": {"seed": "s0"}, "for": {"part": "test"}},
        "by and for are the same cells",
    ),
    "own": ({"axis": "rate", "by": {"rate": "low"}, "for": {"part": "test"}}, "by and for are the same"),
    "key": ({"axis": "rate", "by": {"part": "held"}, "to": {}}, "write axis, by, for and perhaps metric"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_choice_that_cannot_be_is_said(name: str, tmp_path: Path) -> None:
    said, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        Choice.of(studies.Study(data(tmp_path, choose=said)))


def test_choosing_runs_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for the recipe: what runs, in its order, and what a second start adds."""
    ran: list[str] = []

    def run(runner: Runner, run: Any) -> bool:
        rate = run.name.split(".")[2]
        ran.append(run.name)
        write(tmp_path / "out", run.name, {"low": 1.0, "mid": 3.0, "high": 2.0}[rate])
        return True

    monkeypatch.setattr(Runner, "_run", run)
    monkeypatch.setattr(studies, "check_recipes", lambda *_: None)  # there is no recipe
    monkeypatch.setattr(
        studies, "chains_of", lambda study, cells, _: [[study.run_of(cell)] for cell in cells]
    )
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(data(tmp_path / "out"), sort_keys=False))
    assert studies.main([str(path)]) == 0
    assert [name.split(".")[0] for name in ran] == ["held"] * 6 + ["test"] * 4
    assert {name.split(".")[2] for name in ran[6:]} == {"mid"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| mid | 3.000 " in table and "low" not in table and "high" not in table


def test_a_process_that_goes_on_gives_each_run_what_a_new_one_would(tmp_path: Path) -> None:
    """The same recipe after another of another precision and seed."""
    short = ["stages.0.steps=1", "stages.1.steps=2", "trainer.eval_every=0", "trainer.save_every=0"]

    def results(name: str, *overrides: str) -> dict[str, Any]:
        arguments = ["--config", str(path), f"output_dir={tmp_path / name}", *short, *overrides]
        assert study_worker.run_one(arguments) == 0
        return harness.without_timing(json.loads((tmp_path / name / "results.json").read_text()))

    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(configs.dump(harness.tiny_recipe(tmp_path))))
    first = results("first")
    assert results("other", "seed=4", "trainer.precision=bf16") != first
    assert results("again") == first


def test_of_a_finished_cell_a_lean_study_keeps_what_tables_read(tmp_path: Path) -> None:
    runner = Runner(tmp_path, 1, 1, [], lean=True)
    for name in ("teacher", "cell", "broken"):
        for part in LARGE:
            path = tmp_path / name / part
            path.parent.mkdir(exist_ok=True)
            path.write_text("") if "." in part else path.mkdir()
    for name in ("teacher", "cell"):
        (tmp_path / name / "results.json").write_text("{}")
    runner.stopping = True  # nothing is begun
    runner.run_all([[studies.Run("teacher", ()), studies.Run("cell", ())], [studies.Run("broken", ())]])
    left = {
        name: {path.name for path in (tmp_path / name).iterdir()} for name in ("teacher", "cell", "broken")
    }
    assert left == {"teacher": {*LARGE, "results.json"}, "cell": {"results.json"}, "broken": {*LARGE}}


@pytest.mark.slow
def test_a_kept_process_runs_a_study_and_a_run_that_fails_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(configs.dump(harness.tiny_recipe(tmp_path))))
    study = {
        "output_dir": str(tmp_path / "out"),
        "common": [f"config={path}"],
        "axes": {"arm": {"a": [], "bad": ["student.model=none"], "c": ["seed=2"]}, "of": {"all": []}},
        "report": {"metric": "top1", "rows": ["arm"], "columns": "of"},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    command = [sys.executable, str(ROOT / "scripts" / "study.py"), str(tmp_path / "study.yaml")]
    done = subprocess.run([*command, "--keep-process"], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line[:4] in ("done", "fail")] == [
        "done  a.all",
        "failed  bad.all",
        "done  c.all",
    ]
    assert "unknown timm model 'none'" in (tmp_path / "out" / "bad.all.log").read_text()
