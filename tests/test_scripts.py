"""scripts/: what they make of the files of a run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_folds_are_pooled_by_who_was_right_on_what(tmp_path: Path) -> None:
    crossval = script("digits_crossval")
    index = np.arange(3)
    scores = {"teacher/top1": [100.0, 100.0, 0.0], "student/top1": [100.0, 0.0, 0.0]}
    np.savez(tmp_path / "items.npz", index=index, **scores)
    found = crossval.correct_in(tmp_path)
    assert found.keys() == {"teacher", "student"} and found["teacher"].tolist() == [True, True, False]
    (tmp_path / "scratch").mkdir()
    np.savez(tmp_path / "scratch" / "items.npz", index=index, **{"student/top1": [0.0, 0.0, 100.0]})
    found = crossval.correct_in(tmp_path)
    assert found["scratch"].tolist() == [False, False, True]
    summary = crossval.summarise(found)
    assert summary["top1"] == pytest.approx({"teacher": 200 / 3, "student": 100 / 3, "scratch": 100 / 3})
    assert summary["student_minus_teacher"]["mean"] == pytest.approx(-100 / 3)


@pytest.mark.parametrize(
    ("teacher", "student", "code", "says"),
    [
        (98.0, 96.0, 0, "demo check passed: teacher 98.00 %, student 96.00 %"),
        (98.0, 94.9, 1, "more than 3 points below"),
        (96.9, 96.0, 1, "less than 97 %"),
        (98.0, None, 2, "no finished distillation"),
    ],
)
def test_what_the_demo_promises(
    tmp_path: Path, teacher: float, student: float | None, code: int, says: str
) -> None:
    results: dict[str, Any] = {"teacher": {"top1": teacher}, "agreement": {"agreement": 97.0}}
    results |= {} if student is None else {"student": {"top1": student}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    done = subprocess.run(
        [sys.executable, SCRIPTS / "check_demo.py", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == code and says in done.stdout + done.stderr
