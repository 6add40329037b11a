"""The verdict table of the study on learning in context, out of folders made up for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from transmamba.config.registry import FUNCTIONS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import icl_verdicts as verdicts  # noqa: E402


def study(folder: Path, missed: dict[str, list[float]]) -> Path:
    """Made-up runs: task.architecture.state.rate -> what each seed missed."""
    labels: list[list[str]] = [sorted({name.split(".")[place] for name in missed}) for place in range(4)]
    axes: dict[str, Any] = {
        axis: {label: [] for label in each}
        for axis, each in zip(("task", "architecture", "state", "rate"), labels, strict=True)
    }
    axes["seed"] = {f"s{n}": [] for n in range(3)}
    functions = {
        "mqar": dict(name="mqar", pairs=4),
        "parity": dict(name="sparse_parity"),
        "tree": dict(name="decision_tree"),
    }
    for name, values in missed.items():
        for seed, value in enumerate(values):
            run = folder / "runs" / f"{name}.s{seed}"
            run.mkdir(parents=True)
            (run / "results.json").write_text(json.dumps({"student": {"missed": value}}))
            task = dict(function=functions[name.split(".")[0]], mixed=[])
            (run / "config.yaml").write_text(yaml.safe_dump({"task": task}))
    path = folder / "study.yaml"
    report = dict(metric="missed", rows=["task"], columns="rate")
    path.write_text(
        yaml.safe_dump(dict(output_dir=str(folder / "runs"), axes=axes, report=report), sort_keys=False)
    )
    return path


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {(row[0], row[1]): row[2:] for row in cells}


def test_verdicts_and_the_paper_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study(
        tmp_path,
        {
            "mqar.transformer.16.high": [2.0, 1.0, 0.0],
            "mqar.transformer.16.low": [40.0, 40.0, 40.0],
            "mqar.mamba.16.low": [74.0, 74.0, 74.0],
            "mqar.mamba.16.high": [70.0, 71.0, 72.0],
            "mqar.mamba.64.high": [69.0, 69.0, 69.0],
            "mqar.mambaformer.16.high": [30.0, 30.0, 30.0],
            "parity.transformer.16.high": [49.0, 50.0, 51.0],
            "parity.mamba.16.high": [1.0],
            "tree.mamba.16.high": [60.0, 60.0, 60.0],
            "tree.transformer.16.high": [50.0, 50.0, 50.0],
        },
    )
    assert verdicts.main([str(path), "--figure", str(tmp_path / "state.png")]) == 0
    found = rows(capsys.readouterr().out)
    assert found["mqar", "transformer"] == ["1.00 (0.00 to 2.00; 3)", "75.0", "high", "16", "ok", "ok", "yes"]
    assert found["mqar", "mamba"] == [
        "69.00 (69.00 to 69.00; 3)",
        "75.0",
        "high",
        "64",
        "fails",
        "fails",
        "yes",
    ]
    assert found["mqar", "mambaformer"][-3:] == ["behind", "ok", "no"]
    assert found["parity", "transformer"][-3:] == ["fails?", "fails", "yes"], "its rate was not swept"
    assert found["parity", "mamba"][-3:] == ["ok?", "ok", "yes"], "one seed"
    assert found["tree", "mamba"][-3:] == ["ok", "behind", "no"], "within a quarter of the best"
    assert (tmp_path / "state.png").stat().st_size > 5000


def test_several_functions_of_a_run_have_a_row_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study(tmp_path, {"tree.transformer.16.high": [10.0, 20.0, 30.0]})
    for seed in range(3):
        run = tmp_path / "runs" / f"tree.transformer.16.high.s{seed}"
        (run / "results.json").write_text(
            json.dumps({"student": {"missed": 5.0, "sparse_parity_missed": 50.0}})
        )
        task = dict(function=dict(name="decision_tree"), mixed=[dict(name="sparse_parity")])
        (run / "config.yaml").write_text(yaml.safe_dump({"task": task}))
    assert verdicts.main([str(path)]) == 0
    found = rows(capsys.readouterr().out)
    assert all(row[-2:] == ["", ""] for row in found.values()), "the paper's are of each function alone"
    assert found["tree: decision_tree", "transformer"][0] == "5.00 (5.00 to 5.00; 3)"
    assert found["tree: sparse_parity", "transformer"][0] == "50.00 (50.00 to 50.00; 3)"


def test_a_run_that_diverged_is_never_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    runs = {"tree.mamba.16.a": [nan, 1.0, 1.0], "tree.mamba.16.b": [9.0] * 3}
    path = study(tmp_path, {**runs, "tree.transformer.16.a": [nan] * 3, "tree.transformer.16.b": [nan] * 3})
    assert verdicts.main([str(path)]) == 0
    found = rows(capsys.readouterr().out)
    assert found["tree", "mamba"][0].startswith("9.00") and found["tree", "mamba"][-3] == "ok"
    assert found["tree", "transformer"][-3] == "fails"


def test_the_paper_taught_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study(tmp_path, {"mqar.mamba.16.high": [1.0] * 3})
    for config in (tmp_path / "runs").glob("*/config.yaml"):
        config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "teacher": {"name": "auto"}}))
    assert verdicts.main([str(path)]) == 0
    assert rows(capsys.readouterr().out)["mqar", "mamba"][-2:] == ["", ""]


def test_every_function_has_the_paper_s_verdicts() -> None:
    assert set(verdicts.PAPER) == set(FUNCTIONS)


def test_a_study_without_runs_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study(tmp_path, {"mqar.mamba.16.high": []})
    assert verdicts.main([str(path)]) == 2
    assert "no run of it has finished; run scripts/study.py first" in capsys.readouterr().err
    (tmp_path / "runs" / "mqar.mamba.16.high.s0").mkdir(parents=True)
    (tmp_path / "runs" / "mqar.mamba.16.high.s0" / "results.json").write_text("{")
    assert verdicts.main([str(path)]) == 2 and "cannot be read" in capsys.readouterr().err
