"""The verdict table of the study on learning in context, out of folders made up for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from transmamba.config.registry import FUNCTIONS
from transmamba.tasks.in_context import InContext, InContextConfig

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import icl_references  # noqa: E402
import icl_verdicts as verdicts  # noqa: E402


def study(folder: Path, missed: dict[str, list[float]], teacher: float = 1.0) -> Path:
    """Made-up runs: task.architecture.state.rate -> what each seed missed."""
    labels: list[list[str]] = [sorted({name.split(".")[place] for name in missed}) for place in range(4)]
    axes: dict[str, Any] = {
        axis: {label: [] for label in each}
        for axis, each in zip(("task", "architecture", "state", "rate"), labels, strict=True)
    }
    axes["seed"] = {f"s{n}": [] for n in range(3)}
    functions = {
        "mqar": dict(name="mqar", pairs=4),
        "parity": dict(name="sparse_parity", d=3, points=10),
        "tree": dict(name="decision_tree"),
    }
    for name, values in missed.items():
        for seed, value in enumerate(values):
            items = value + np.linspace(-1, 1, 50)
            run = folder / "runs" / f"{name}.s{seed}"
            run.mkdir(parents=True)
            (run / "results.json").write_text(json.dumps({"student": {"missed": value}}))
            np.savez(run / "items.npz", **{"student/missed": items, "index": np.arange(50)})
            task = dict(function=functions[name.split(".")[0].split("_")[0]], mixed=[], prompts=64)
            config: dict[str, Any] = dict(task=task, stages=[dict(steps=400), dict(steps=1600)])
            if "_taught" in name:
                config |= dict(teacher=dict(name="auto"))
                both = {"student": {"missed": value}, "teacher": {"missed": teacher}}
                (run / "results.json").write_text(json.dumps(both))
            (run / "config.yaml").write_text(yaml.safe_dump(config))
    path = folder / "study.yaml"
    report = dict(metric="missed", rows=["task"], columns="rate")
    path.write_text(
        yaml.safe_dump(dict(output_dir=str(folder / "runs"), axes=axes, report=report), sort_keys=False)
    )
    return path


def rows(text: str) -> dict[tuple[str, str], list[str]]:
    """Of the first table."""
    lines = text.split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], row[1]): row[2:] for row in cells}


def gaps(text: str) -> dict[tuple[str, ...], list[str]]:
    """Of the second: by task, architecture and state its rate, what is missed, the teacher's, difference."""
    lines = text.split("\n\n")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {tuple(row[:3]): row[3:] for row in cells}


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
            "tree.mamba.16.high": [46.0, 46.0, 46.0],
            "tree.transformer.16.high": [40.0, 40.0, 40.0],
        },
    )
    assert verdicts.main([str(path), "--figure", str(tmp_path / "state.png")]) == 0
    found = rows(capsys.readouterr().out)
    spread = found["mqar", "transformer"].pop(0)
    assert spread.startswith("1.00 [") and spread.endswith("] (0.00 to 2.00; 3)")
    assert found["mqar", "transformer"] == ["guess 75.0", "high", "16", "ok", "ok", "yes"]
    assert found["mqar", "mamba"][1:] == ["guess 75.0", "high", "64", "fails", "fails", "yes"]
    assert found["mqar", "mambaformer"][-3:] == ["behind", "ok", "no"]
    assert found["parity", "transformer"][-3:] == ["not within 2,000 steps?", "fails", "open"], "not swept"
    assert found["parity", "mamba"][-3:] == ["ok?", "ok", "open"], "one seed"
    assert found["tree", "mamba"][-3:] == ["ok", "behind", "no"], "within a quarter of the best"
    assert (tmp_path / "state.png").stat().st_size > 5000


def test_nobody_is_ok_because_others_miss_as_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor behind those who have not learnt it either, nor who is alone in a task."""
    runs = {"tree.transformer.16.high": [88.0] * 3, "tree.mamba.16.high": [89.0] * 3}
    alone = {"mqar.mamba.16.high": [1.0] * 3, "parity.mamba.16.high": [1.0] * 3}
    assert verdicts.main([str(study(tmp_path, {**runs, **alone}))]) == 0
    found = rows(capsys.readouterr().out)
    assert found["tree", "transformer"][-3:] == ["open", "ok", "open"]
    assert found["tree", "mamba"][-3:] == ["open", "behind", "open"]
    assert found["mqar", "mamba"][-3:] == ["ok?", "fails", "open"]
    assert found["parity", "mamba"][-3:] == ["ok?", "ok", "open"]


def test_who_looks_parity_up_has_not_learnt_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both references against a loop over prompts; what they reach is not within any steps, however swept."""
    swept = {f"parity.{name}.16.{rate}": [24.0] * 3 for name in ("transformer",) for rate in ("low", "high")}
    swept |= {f"parity.mamba.{state}.{rate}": [5.0] * 3 for state in ("16", "64") for rate in ("low", "high")}
    assert verdicts.main([str(study(tmp_path, swept))]) == 0
    found = rows(capsys.readouterr().out)
    assert found["parity", "transformer"][-3:] == ["not within 2,000 steps", "fails", "open"]
    assert found["parity", "mamba"][-3:] == ["ok", "ok", "yes"]

    function = FUNCTIONS["sparse_parity"](d=4, points=12)
    task = InContext(InContextConfig(function=function, prompts=64), None)
    batch = task.test_batch(0, np.arange(64))
    lookup, smoother = 0.0, dict.fromkeys(icl_references.WEIGHTS, 0.0)
    for points, values in zip(batch.inputs["points"], batch.targets["values"], strict=True):
        x, y, query = points[::2].tolist(), values[::2, 0].tolist(), 11  # the last tenth of 12
        same = [y[j] for j in range(query) if x[j] == x[query]]
        lookup += 0.5 if not same else float(same[0] != y[query])
        for weight in smoother:
            apart = [sum(a != b for a, b in zip(x[j], x[query], strict=True)) for j in range(query)]
            vote = sum(y[j] * weight**far for j, far in enumerate(apart))
            smoother[weight] += 0.5 if abs(vote) < 1e-12 else float(vote * y[query] < 0)
    said = dict(function=dict(name="sparse_parity", d=4, points=12), mixed=[], prompts=64, eval_seed=0)
    wanted = dict(guess=50.0, lookup=100 * lookup / 64, smoother=100 * min(smoother.values()) / 64)
    assert icl_references.references(said, 0) == pytest.approx(wanted)
    assert wanted["smoother"] <= wanted["lookup"] < 45, "they are no guesses"


def test_differences_have_an_interval_and_their_own_baseline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study(
        tmp_path,
        {
            "mqar.transformer.16.a": [1.0] * 3,
            "mqar.mamba.16.a": [70.0, 71.0, 72.0],
            "mqar.mamba.64.a": [40.0, 41.0, 42.0],
            "mqar_taught.mamba.64.a": [3.0, 4.0, 5.0],
            "mqar_untaught.mamba.64.a": [60.0, 60.0, 63.0],
            "mqar_untaught.mamba.64.b": [50.0, 51.0, 52.0],
        },
        teacher=0.5,
    )
    assert verdicts.main([str(path)]) == 0
    out = capsys.readouterr().out
    found = gaps(out)
    assert found["mqar", "mamba", "64"][-2:] == ["-30.00 [-30.00 to -30.00]", "mqar mamba 16 a"]
    assert found["mqar", "mamba", "16"][-1] == "mqar transformer 16 a"
    taught = found["mqar_taught", "mamba", "64"]
    assert taught[2:] == ["0.50", "-47.00 [-47.00 to -47.00]", "mqar_untaught mamba 64 b"]
    assert taught[1].startswith("4.00 [3.") and found["mqar", "transformer", "16"][-1] == ""
    assert rows(out)["mqar_taught", "mamba"][-3] == "ok", "its teacher's is what it is compared with"


def test_one_rate_of_an_untaught_student_leaves_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of its best state: other states' rates are no sweep of it. So it does to what is compared with it."""
    untaught = {f"mqar_untaught.{name}.16.{rate}": [74.0] * 3 for name in ("mamba", "mlp") for rate in "ab"}
    untaught |= {f"mqar_untaught.mamba.64.{rate}": [72.0] * 3 for rate in "a"}
    untaught |= {f"mqar_untaught.mlp.64.{rate}": [72.0] * 3 for rate in "ab"}
    untaught |= {f"mqar_untaught.mambaformer.16.{rate}": [1.0] * 3 for rate in "a"}
    taught = {f"mqar_taught.{name}.64.a": [3.0] * 3 for name in ("mamba", "mlp")}
    assert verdicts.main([str(study(tmp_path, {**untaught, **taught}))]) == 0
    out = capsys.readouterr().out
    said = {name: rows(out)["mqar_untaught", name][-3] for name in ("mamba", "mlp", "mambaformer")}
    assert said == {"mamba": "fails?", "mlp": "fails", "mambaformer": "ok?"}
    beside = [gaps(out)["mqar_taught", name, "64"][-1] for name in ("mamba", "mlp")]
    assert beside == ["mqar_untaught mamba 64 a?", "mqar_untaught mlp 64 a"]


def test_a_teacher_that_has_not_learnt_it_leaves_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"parity_taught.mamba.16.a": [48.0] * 3, "parity_taught.mambaformer.16.a": [1.0] * 3}
    assert verdicts.main([str(study(tmp_path, runs, teacher=24.0))]) == 0
    found = rows(capsys.readouterr().out)
    assert [row[-3] for row in found.values()] == ["not within 2,000 steps?", "ok?"]


def test_several_functions_of_a_run_have_a_row_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study(tmp_path, {"tree.transformer.16.high": [10.0, 20.0, 30.0]})
    for seed in range(3):
        run = tmp_path / "runs" / f"tree.transformer.16.high.s{seed}"
        (run / "results.json").write_text(
            json.dumps({"student": {"missed": 5.0, "sparse_parity_missed": 50.0}})
        )
        (run / "items.npz").unlink()
        task = dict(
            function=dict(name="decision_tree", d=3), mixed=[dict(name="sparse_parity", d=3, points=9)]
        )
        (run / "config.yaml").write_text(yaml.safe_dump({"task": task}))
    assert verdicts.main([str(path)]) == 0
    found = rows(capsys.readouterr().out)
    assert all(row[-2:] == ["", ""] for row in found.values()), "the paper's are of each function alone"
    assert found["tree: decision_tree", "transformer"][0].startswith("5.00 [5.00 to 5.00, runs alone]")
    assert found["tree: sparse_parity", "transformer"][0].startswith("50.00 [")


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
