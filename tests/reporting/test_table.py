"""The table of results on the terminal."""

from __future__ import annotations

import gc
import io
import math
import sys
import warnings

import pytest
from made_up_run import DIFFERENCE, RESULTS

from transmamba.evaluation.classification import ClassificationEvaluator
from transmamba.reporting.table import results_table

METRICS = ClassificationEvaluator.METRICS


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("┃", "│").split("│")]


def test_a_row_a_model() -> None:
    head, _, *lines = results_table(RESULTS, METRICS, student="runs/x").splitlines()
    assert cells(head) == [
        *("model", "top-1 %", "top-5 %", "agreement %", "ECE %", "NLL nats", "parameters", "samples/s"),
        "minutes",  # and no peak memory, which no model has
    ]
    assert [cells(line) for line in lines] == [
        ["teacher", "91.50", "99.00", "–", "2.00", "0.3100", "22,000,000", "1,200", "–"],
        ["runs/x", "90.25", "98.50", "94.75", "3.00", "0.3500", "24,000,000", "–", "12.0"],
        ["scratch", "60.50", "–", "–", "–", "–", "24,000,000", "–", "–"],
    ]


@pytest.mark.parametrize("columns", ["20", "60", "300"])
def test_columns_are_never_cut(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert results_table(RESULTS, METRICS, width=200) == results_table(RESULTS, METRICS)
    assert "…" not in results_table(RESULTS, METRICS, width=10)


def test_a_narrow_terminal_gets_it_turned() -> None:
    turned = results_table(RESULTS, METRICS, width=80).splitlines()
    assert cells(turned[0]) == ["", "teacher", "student", "scratch"]
    assert cells(turned[2]) == ["top-1 %", "91.50", "90.25", "60.50"]
    assert max(map(len, turned)) <= 60


def test_a_terminal_of_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "ascii"

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "70")
    text = results_table(RESULTS, METRICS)
    assert text.isascii() and text.splitlines()[0].split() == ["|", "teacher", "|", "student", "|", "scratch"]


def test_what_is_not_finite_is_said() -> None:
    text = results_table({"student": {"top1": math.nan}}, METRICS)
    assert cells(text.splitlines()[-1]) == ["student", "nan"]


def test_nothing_is_left_open() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        results_table(RESULTS, METRICS)
        gc.collect()


def test_student_against_teacher() -> None:
    both = {**RESULTS, **DIFFERENCE}
    lines = [cells(line) for line in results_table(both, METRICS, student="runs/x").splitlines()]
    assert lines[-2][:4] == ["runs/x - teacher [95 %]", "-1.25 (-2.00 to -0.50)", "–", "–"]
    assert lines[-1][:3] == ["runs/x / teacher % [95 %]", "98.6 (97.8 to 99.5)", "–"]
    assert "+0.0400 (+0.0100 to +0.0700)" in lines[-2]
    turned = [cells(line) for line in results_table(both, METRICS, width=80).splitlines()]
    assert turned[0][-2:] == ["student - teacher [95 %]", "student / teacher % [95 %]"]
    assert turned[2] == [
        *("top-1 %", "91.50", "90.25", "60.50"),
        *("-1.25 (-2.00 to -0.50)", "98.6 (97.8 to 99.5)"),
    ]
    without = {**RESULTS, "difference": {"nll": DIFFERENCE["difference"]["nll"]}}
    assert "/ teacher" not in results_table(without, METRICS)
