"""metrics.jsonl survives kills and resumes, the console never crashes, wandb gets the same numbers."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from transmamba.errors import UserError
from transmamba.reporting.tracking import Tracker, WandbConfig, read_metrics

ROW = {"stage": 0, "stage_name": "align", "samples": 8, "loss": 0.5, "loss/kl": 0.25, "lr": 1e-3}


def test_rows_come_back(tmp_path: Path) -> None:
    with Tracker(tmp_path / "new" / "run", total_steps=2, quiet=True) as tracker:
        tracker.log(ROW, step=1)
        tracker.log(
            {"loss": torch.tensor(1.5), "count": np.int64(3), "bad": math.nan, "worse": -math.inf}, step=2
        )
    rows = read_metrics(tmp_path / "new" / "run" / "metrics.jsonl")
    assert rows == [{"step": 1, **ROW}, {"step": 2, "loss": 1.5, "count": 3, "bad": None, "worse": None}]


def test_each_row_is_on_disk_at_once(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, quiet=True)
    tracker.log(ROW, step=1)
    assert len(read_metrics(tracker.path)) == 1
    tracker.close()
    tracker.close()


def test_resume_repeats_no_row(tmp_path: Path) -> None:
    with Tracker(tmp_path / "whole", quiet=True) as tracker:
        for step in range(6):
            tracker.log({"loss": step / 3}, step)
    with Tracker(tmp_path / "killed", quiet=True) as tracker:
        for step in range(3):
            tracker.log({"loss": step / 3}, step)
        saved = tracker.offset()
        tracker.log({"loss": 1.0}, 3)
    path = tmp_path / "killed" / "metrics.jsonl"
    assert saved < path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"step": 4, "lo')
    with Tracker(tmp_path / "killed", quiet=True) as tracker:
        tracker.rewind(saved)
        assert tracker.offset() == saved
        for step in range(3, 6):
            tracker.log({"loss": step / 3}, step)
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_torn_line_without_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 0}\n{"st')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 0}]
    with Tracker(tmp_path, quiet=True) as tracker:
        tracker.log({}, 1)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 0}, {"step": 1}]


def test_rewind_beyond_the_end_adds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log({}, 0)
        tracker.rewind(1000)
        tracker.log({}, 1)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1]
    assert "rows are missing" in capsys.readouterr().err


def test_rewind_to_nothing(tmp_path: Path) -> None:
    with Tracker(tmp_path, quiet=True) as tracker:
        tracker.log({}, 0)
        tracker.rewind(0)
        assert tracker.offset() == 0


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    other: Any = SimpleNamespace(is_main_process=False)
    with Tracker(tmp_path / "run", other, total_steps=3) as tracker:
        tracker.log(ROW, 0)
        tracker.say("hello")
        tracker.rewind(0)
        assert tracker.offset() == 0
    assert not (tmp_path / "run").exists()


def test_unreadable_metrics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("{}\noops\n{}\n")
    with pytest.raises(UserError, match="line 2 is no JSON"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path, total_steps=100) as tracker:
        for step in range(50):
            tracker.log(ROW, step)
        tracker.log({"eval/top1": 12.5}, 50)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 0/100  stage_name align  loss 0.5  lr 0.001", "step 50/100  eval/top1 12.5"]


def test_progress_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Tracker(tmp_path, total_steps=4) as tracker:
        for step in range(1, 5):
            tracker.log(ROW, step)
        tracker.say("[saved]")
    assert "4/4" in shown.getvalue() and "[saved]" in shown.getvalue()


@pytest.mark.parametrize("stream", [None, "closed", "ascii"])
def test_a_poor_stderr_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str | None
) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", None if stream is None else file)
    with Tracker(tmp_path, total_steps=1) as tracker:
        if stream == "closed":
            file.close()
        tracker.say("café ✓")
        tracker.log({"stage_name": "ü"}, 1)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


# --- wandb ---


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a LevelDB log (7-byte header, blocks of 32 KiB) of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, message = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        message += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(message)
            yield record
            message = b""


def wandb_history(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    """The rows, the configuration and the id of the only offline run in `folder`."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    rows, config, run_id = [], {}, ""
    for _ in range(200):  # wandb's own process writes the file, and may end it after finish() has returned
        records = list(wandb_records(path))
        if records and records[-1].HasField("exit"):
            break
        time.sleep(0.1)
    for record in records:
        if record.HasField("run"):
            run_id = record.run.run_id
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        if record.HasField("history"):
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({"step": record.history.step.num} | row)
    return rows, config, run_id


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("wandb")
    from accelerate import Accelerator

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return Accelerator(cpu=True, log_with="wandb")


def test_wandb_gets_what_the_file_gets(tmp_path: Path, offline: Any) -> None:
    config = WandbConfig(project="test", name="run", mode="offline", tags=("a",))
    with Tracker(
        tmp_path, offline, config, total_steps=20, quiet=True, config={"stages": [{"lr": 1e-3}]}
    ) as tracker:
        for step in range(0, 20, 4):
            tracker.log(
                {"loss": 1 / (step + 3), "loss/kl": step, "similarity/feature/0": 0.5, "stage_name": "a"},
                step,
            )
        tracker.log({"eval/top1": torch.tensor(12.5)}, 20)
    rows, seen, run_id = wandb_history(tmp_path)
    logged = [
        {key: value for key, value in row.items() if key not in ("_step", "_runtime", "_timestamp")}
        for row in rows
    ]
    assert logged == read_metrics(tmp_path / "metrics.jsonl")
    assert len(logged) == 6
    assert seen["stages"] == [{"lr": 1e-3}]
    assert run_id == (tmp_path / "wandb_id").read_text().strip()


def test_wandb_run_id_survives_a_resume(tmp_path: Path, offline: Any) -> None:
    (tmp_path / "wandb_id").write_text("kept1234\n")
    with Tracker(tmp_path, offline, WandbConfig(mode="offline"), quiet=True) as tracker:
        tracker.log({"loss": math.nan}, 7)
    rows, _, run_id = wandb_history(tmp_path)
    assert run_id == "kept1234"
    assert rows[0]["step"] == 7


def test_one_accelerator_tracks_two_runs(tmp_path: Path, offline: Any) -> None:
    for name, step in (("first", 1), ("second", 2)):
        with Tracker(tmp_path / name, offline, WandbConfig(mode="offline"), quiet=True) as tracker:
            tracker.log({"loss": 0.5}, step)
    (first,), _, first_id = wandb_history(tmp_path / "first")
    (second,), _, second_id = wandb_history(tmp_path / "second")
    assert (first["step"], second["step"]) == (1, 2) and first_id != second_id


def test_wandb_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'transmamba\[wandb\]'"):
        Tracker(tmp_path, None, WandbConfig(), quiet=True)


def test_wandb_without_a_login(tmp_path: Path, offline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**options: Any) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty). call wandb login")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"wandb cannot start: api_key not configured.*mode: offline"):
        Tracker(tmp_path, offline, WandbConfig(), quiet=True)


def test_wandb_needs_an_accelerator_that_logs(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(ValueError, match="log_with"):
        Tracker(tmp_path, None, WandbConfig(mode="offline"), quiet=True)
