"""scripts/moe_verdict.py: the order, and the steps to Mamba's loss on made-up curves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import moe_verdict  # noqa: E402


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
    assert "order here:   e8 < mamba < e1" in table and table[-1] == "on which side of Mamba: 1 of 1 agree"
    assert (
        next(line for line in table if line.startswith("| e4")) == "| e4 | not run | not run | 3.55 | never |"
    )
    assert "| e8 | 0.7000 ± 0.1414 (2 seeds) | 0.38 | 3.51 | 0.91 |" in table
    assert "| e1 | 2.5000 (1 seeds) | never | 3.56 | never |" in table


def test_a_curve_that_begins_below_is_there_at_once(tmp_path: Path) -> None:
    write(tmp_path / "run", 1.0, 0.5)
    curve = moe_verdict.Curve.read(tmp_path / "run")
    assert curve is not None and curve.until(2.0) == 10 and curve.until(0.4) is None


def test_upcycled_against_dense(tmp_path: Path) -> None:
    for name, loss in (("dense.s0", 2.0), ("dense.s1", 2.1), ("drop.s0", 1.9), ("drop.s1", 2.2)):
        write(tmp_path / name, loss)
    found = moe_verdict.curves(tmp_path, ("dense", "drop"))
    assert moe_verdict.upcycled(found) == ["drop - dense: -0.1000, +0.1000 nats a token, a seed each"]


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
