"""scripts/moe_verdict.py: the order, and the steps to Mamba's loss on made-up curves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import moe_verdict  # noqa: E402
from study_file import Study, name_of  # noqa: E402
from study_tables import tabulate  # noqa: E402


def write(folder: Path, *losses: float) -> None:
    """A run evaluated every 10 steps."""
    folder.mkdir(parents=True)
    rows = [{"step": 10 * (k + 1), "eval/nats_per_token": loss} for k, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in ({"step": 5, "loss": 9}, *rows))
    )
    folder.with_name(f"{folder.name}.log").touch()  # as study.py leaves it
    (folder / "results.json").write_text(json.dumps({"student": {"nats_per_token": losses[-1]}}))


def test_steps_to_mamba_s_loss_and_the_order(tmp_path: Path) -> None:
    write(tmp_path / "mamba.s0", 4.0, 3.0, 2.5, 2.0)
    write(tmp_path / "e8.s0", 3.0, 1.0, 0.9, 0.8)  # 2.0 half way from 10 to 20
    write(tmp_path / "e8.s1", 3.0, 1.0, 0.9, 0.6)  # no Mamba of its seed
    write(tmp_path / "e1.s0", 4.0, 3.5, 3.0, 2.5)
    (tmp_path / "e4.s0").mkdir()  # not finished
    found = moe_verdict.curves(tmp_path, (moe_verdict.MAMBA, *moe_verdict.MODELS))
    assert set(found) == {"mamba", "e8", "e1"}
    assert moe_verdict.shares(found, "e8") == [pytest.approx(15 / 40)]
    assert moe_verdict.shares(found, "e1") == [None]
    assert moe_verdict.shares(found, "mamba") == [pytest.approx(1.0)]
    table = moe_verdict.verdict(found)
    assert "order here:   e8 < mamba < e1" in table
    assert "order theirs: mamba = e8 < e1" in table, "3.51 twice"
    assert "e1 - mamba: +0.5000 [one pair]: behind; theirs behind: yes" in table
    assert "Mamba's steps over those of e8: 2.67; theirs 1.10" in table
    assert (
        next(line for line in table if line.startswith("| e4")) == "| e4 | not run | not run | 3.55 | never |"
    )
    assert "| e8 | 0.7000 ± 0.1414 (2 seeds) | 0.38 | 3.51 | 0.91 |" in table
    assert "| e1 | 2.5000 (1 seeds) | never | 3.56 | never |" in table


def test_a_curve_that_begins_below_is_there_at_once(tmp_path: Path) -> None:
    write(tmp_path / "run", 1.0, 0.5)
    curve = moe_verdict.Curve.read(tmp_path / "run")
    assert curve is not None and curve.until(2.0) == 10 and curve.until(0.4) is None


def test_eight_experts_are_judged_and_parallel_is_shown(tmp_path: Path) -> None:
    """Their tie of 8 experts with Mamba is refuted by more than 1 % behind, seeds agreeing, and by nothing
    less; `parallel` has no number of theirs."""
    for n, (mamba, e8, e16, parallel) in enumerate([(2.0, 2.01, 1.9, 1.8), (2.0, 2.015, 2.1, 1.9)]):
        write(tmp_path / f"mamba.quarter.s{n}", 3.0, mamba)
        write(tmp_path / f"e8.quarter.s{n}", 3.0, e8)
        write(tmp_path / f"e16.quarter.s{n}", 3.0, e16)
        write(tmp_path / f"parallel.quarter.s{n}", 3.0, parallel)
    models = ("mamba", "e8", "e16", "parallel")
    table = moe_verdict.verdict(moe_verdict.curves(tmp_path, models))
    judged = {line.split(" - ")[0]: line for line in table if " - mamba: " in line}
    assert judged["e8"].startswith("e8 - mamba: +0.0125 [+0.0100 to +0.0150; 2 seeds, runs alone]: behind")
    assert "theirs equal: yes (a tie of theirs is refuted by more than 0.0200 behind)" in judged["e8"]
    assert judged["e16"].endswith("not told apart; theirs ahead: open")
    assert judged["parallel"].endswith(": ahead")
    assert "| parallel | 1.8500 ± 0.0707 (2 seeds) | 0.94 ± 0.03 | - | - |" in table
    assert any(line.startswith("parallel - e8: -0.1625 [") for line in table)
    for n in range(2):
        write(tmp_path / "worse" / f"mamba.s{n}", 3.0, 2.0)
        write(tmp_path / "worse" / f"e8.s{n}", 3.0, 2.03)
    table = moe_verdict.verdict(moe_verdict.curves(tmp_path / "worse", models))
    assert any("behind; theirs equal: no (" in line for line in table)


def test_seeds_that_never_come_to_mamba_s_loss_are_counted(tmp_path: Path) -> None:
    """In the ratio by their number, and in the judgement of 32 experts with all of their steps."""
    for n, (e16, e32) in enumerate(
        [((3.0, 1.0), (2.0, 1.0)), ((3.0, 2.5), (3.0, 2.9)), ((3.0, 2.9), (2.0, 1.0))]
    ):
        write(tmp_path / f"mamba.s{n}", 3.0, 2.5, 2.2, 2.0)
        write(tmp_path / f"e1.s{n}", 4.0, 3.9)
        write(tmp_path / f"e16.s{n}", *e16)
        write(tmp_path / f"e32.s{n}", *e32)
    table = moe_verdict.verdict(moe_verdict.curves(tmp_path, ("mamba", "e1", "e16", "e32")))
    assert "Mamba's steps over those of e1: never" in table
    assert "Mamba's steps over those of e16: 2.67 (1 of 3 seeds); theirs 1.79" in table
    mean = (0.25 + 1 + 0.25) / 3
    assert f"e32 needs {mean:.2f} [0.25 to 1.00; 3 seeds, runs alone] of Mamba's steps; " in "\n".join(table)
    assert any(line.endswith("at most 0.6 as theirs: open") for line in table)
    for share, judged in ((0.5, "yes"), (0.75, "no")):
        folder = tmp_path / judged
        for n in range(2):
            write(folder / f"mamba.s{n}", 3.0, 2.5, 2.2, 2.0)
            write(folder / f"e32.s{n}", *[2.5] * int(4 * share - 1), 2.0)
        table = moe_verdict.verdict(moe_verdict.curves(folder, ("mamba", "e32")))
        assert (
            f"e32 needs {share:.2f} [{share:.2f} to {share:.2f}; 2 seeds, runs alone] of Mamba's steps; "
            + (f"at most 0.6 as theirs: {judged}")
            in table
        )
    one = moe_verdict.verdict(
        {model: {"s0": moe_verdict.curves(tmp_path, (model,))[model]["s0"]} for model in ("mamba", "e32")}
    )
    assert "e32 needs 0.25 of Mamba's steps [one seed]: open" in one
    assert not any("needs" in line for line in moe_verdict.verdict(moe_verdict.curves(tmp_path, ("e32",))))


def test_a_model_of_two_folders_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "e8.s0", 3.0, 2.0)
        write(tmp_path / folder / f"{'mamba' if folder == 'a' else 'dense'}.s0", 3.0, 2.0)
    monkeypatch.setattr(sys, "argv", ["moe_verdict.py", str(tmp_path / "a"), str(tmp_path / "b")])
    assert moe_verdict.main() == 2
    told = capsys.readouterr()
    assert (
        told.err.startswith(f"error: {tmp_path / 'b'}: has runs of e8, as a folder before") and not told.out
    )


def test_who_starves_late_is_said(tmp_path: Path) -> None:
    """Of two routers of four experts: in the last tenth of twenty lines one expert has 1 % of an even share,
    which it had not before."""
    write(tmp_path / "e32.s0", 3.0, 2.0)
    rows = []
    for step in range(20):
        loads = [0.3, 0.2, 0.25, 0.25] if step < 18 else [0.0025, 0.4975, 0.25, 0.25]
        row = {f"routing/balance/{layer}/load_{e}": load for layer in (1, 3) for e, load in enumerate(loads)}
        row["routing/balance/3/load_0"] = 0.25
        rows.append({"step": step, **row, "routing/balance/1/dropped": 0.1, "routing/balance/3/dropped": 0.3})
    with (tmp_path / "e32.s0" / "metrics.jsonl").open("a") as log:
        log.writelines(f"{json.dumps(row)}\n" for row in rows)
    table = moe_verdict.verdict(moe_verdict.curves(tmp_path, ("e32",)))
    assert table[-1] == (
        "e32 s0: 1 of 8 experts starve; the least has 0.010, the most 1.99 of an even share; "
        "20.0 % of tokens dropped"
    )


def test_upcycled_against_dense(tmp_path: Path) -> None:
    for name, loss in (("dense.6M.s0", 2.0), ("dense.6M.s1", 2.1), ("drop.6M.s0", 1.9), ("drop.6M.s1", 2.2)):
        write(tmp_path / name, loss)
    found = moe_verdict.curves(tmp_path, ("dense", "drop"))
    assert moe_verdict.verdict(found) == []
    assert moe_verdict.upcycled(found) == [
        "drop - dense: +0.0000 [-0.1000 to +0.1000; 2 seeds, runs alone] nats a token "
        "(a seed each: -0.1000, +0.1000)"
    ]


@pytest.mark.parametrize("name", ["moe_mamba", "moe_upcycled"])
def test_the_study_s_own_table_has_intervals_over_seeds(name: str, tmp_path: Path) -> None:
    """And none between parts that read other tokens."""
    study = Study(yaml.safe_load((ROOT / "recipes" / "studies" / f"{name}.yaml").read_text()))
    study.root = tmp_path
    for place, cell in enumerate(study.cells):
        write(tmp_path / name_of(cell), 2.0 + 0.01 * place)
    lines = [line for line in tabulate(study, study.cells).splitlines() if line.startswith("| ")]
    seeds = {cell["seed"] for cell in study.cells}
    assert len(lines) == 1 + len({cell["model"] for cell in study.cells})
    compared = [line for line in lines[1:] if "; " in line]
    assert len(compared) == len(lines) - 2, "all but the baseline"
    assert all(f"({len(seeds)}); " in line and " to " in line for line in compared), compared


def test_upcycled_experts_differ_by_how_they_begin_and_route_alone() -> None:
    """None has a capacity, which would drop tokens of one and not of others."""
    study = Study(yaml.safe_load((ROOT / "recipes" / "studies" / "moe_upcycled.yaml").read_text()))
    recipes = {cell["model"]: study.run_of(cell).resolved()[0] for cell in study.cells}
    experts = {model: recipe["student"].pop("experts", {}) for model, recipe in recipes.items()}
    assert {model: each.get("capacity") for model, each in experts.items()} == dict.fromkeys(experts)
    assert {each["count"] for model, each in experts.items() if model != "dense"} == {8}
    for recipe in recipes.values():
        recipe["stages"][1].pop("losses")
    assert all(recipe == recipes["dense"] for recipe in recipes.values())


def test_an_empty_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["moe_verdict.py", str(tmp_path)])
    assert moe_verdict.main() == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_cut_line_is_an_error_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "e8.s0", 3.0, 2.0)
    log = tmp_path / "e8.s0" / "metrics.jsonl"
    log.write_text(log.read_text()[:-9])
    monkeypatch.setattr(sys, "argv", ["moe_verdict.py", str(tmp_path)])
    assert moe_verdict.main() == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path / 'e8.s0'}: cannot be read") and told.count("\n") == 1
