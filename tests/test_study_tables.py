"""scripts/study_tables.py: which runs a table compares, and its intervals by brute force and closed forms."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import study as studies  # noqa: E402
import study_tables  # noqa: E402
from study_tables import Score, interval, read_score  # noqa: E402


def write(folder: Path, items: Any, metric: str = "miou", index: Any = None, **others: Any) -> None:
    """A finished run: `items` are its scores, or the metric alone."""
    folder.mkdir(parents=True)
    results = {"student": {metric: float(np.mean(items)), "params": 7}, **others}
    (folder / "results.json").write_text(json.dumps(results))
    if np.ndim(items):
        arrays = {f"student/{metric}": np.asarray(items, np.float32)}
        np.savez(folder / "items.npz", index=np.arange(len(items)) if index is None else index, **arrays)


def a_study(root: Path, seeds: int = 2, **report: Any) -> studies.Study:
    axes = {
        "arm": {"a": [], "b": []},
        "share": {"5%": [], "all": []},
        "seed": {f"s{i}": [] for i in range(seeds)},
    }
    shown = {"metric": "miou", "rows": ["arm"], "columns": "share", **report}
    return studies.Study({"output_dir": str(root), "axes": axes, "report": shown})


def rows_of(study: studies.Study) -> dict[str, list[str]]:
    lines = study_tables.tabulate(study, study.cells).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


# --- the interval ---


def score(items: Any, index: Any = None) -> Score:
    items = np.asarray(items, float)
    return Score(items.mean(), np.arange(len(items)) if index is None else np.asarray(index), items)


def quantiles(means: list[float]) -> list[float]:
    return np.quantile(means, [0.025, 0.975], method="inverted_cdf").tolist()


def test_the_interval_is_that_of_every_resample() -> None:
    """Two pairs and four items: all 4 x 256 resamples of pairs and of items, the same items in both pairs."""
    gaps = np.array([[0.0, 1.0, 5.0, 2.0], [3.0, -2.0, 4.0, 7.0]])
    pairs = [(score(10 + row), score([10.0] * 4)) for row in gaps]
    means = [
        gaps[np.ix_(drawn, items)].mean()
        for drawn in itertools.product(range(2), repeat=2)
        for items in itertools.product(range(4), repeat=4)
    ]
    found = interval(pairs)
    assert found is not None and found[2] == ""
    assert found[:2] == pytest.approx(quantiles(means), abs=0.26)  # means are an eighth apart


def test_one_pair_has_the_standard_error_of_its_items() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(0.7, 0.2, 4000), generator.normal(0.5, 0.3, 4000)
    found = interval([(score(a), score(b))])
    assert found is not None and found[2] == "items alone"
    error = (a - b).std() / np.sqrt(4000)
    mean = (a - b).mean()
    assert found[:2] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=0.1 * error)


def test_items_that_pairs_share_are_drawn_together_and_others_apart() -> None:
    """Where all pairs have the same gaps, more pairs of the same items say nothing new, of others they do."""
    gaps = np.random.default_rng(4).normal(0, 1, 500)
    error = gaps.std() / np.sqrt(500)

    def width(starts: list[int]) -> float:
        pairs = [
            (score(gaps, np.arange(500) + start), score(0 * gaps, np.arange(500) + start)) for start in starts
        ]
        found = interval(pairs)
        assert found is not None
        return (found[1] - found[0]) / (2 * 1.96 * error)

    assert width([0] * 4) == pytest.approx(1, rel=0.08)
    # pairs are drawn too, and one drawn twice counts twice: 1/4 + (1 - 1/4)/4 of the variance
    assert width([0, 1000, 2000, 3000]) == pytest.approx(np.sqrt(1 / 4 + 3 / 16), rel=0.08)


def test_without_items_it_is_over_runs_alone() -> None:
    values = [(3.0, 1.0), (5.0, 2.0), (4.0, 4.0)]
    found = interval([(Score(a), Score(b)) for a, b in values])
    gaps = np.array([2.0, 3.0, 0.0])
    means = [gaps[list(drawn)].mean() for drawn in itertools.product(range(3), repeat=3)]
    assert found is not None and found[2] == "runs alone"
    assert found[:2] == pytest.approx(quantiles(means), abs=1e-9)
    assert interval([(Score(3.0), Score(1.0))]) is None
    other = score([1.0, 2.0], index=[5, 6])
    assert interval([(score([1.0, 2.0]), other)]) is None, "other items are no pairs"


# --- what is read ---


def test_items_are_paired_by_their_index_and_not_by_their_place(tmp_path: Path) -> None:
    items = np.arange(50.0)
    write(tmp_path / "a", items + 1)
    write(tmp_path / "b", items[::-1], index=np.arange(50)[::-1])
    a, b = (read_score(tmp_path / name, "miou") for name in "ab")
    assert a is not None and b is not None
    assert interval([(a, b)]) == (1.0, 1.0, "items alone")


def test_any_number_of_a_run_is_a_metric_and_a_teacher_s_too(tmp_path: Path) -> None:
    write(tmp_path / "a", 3.0, teacher={"miou": 4.0})
    found = [read_score(tmp_path / "a", "params"), read_score(tmp_path / "a", "miou", "teacher")]
    assert [each and (each.value, each.items.size) for each in found] == [(7.0, 0), (4.0, 0)]
    assert (
        read_score(tmp_path / "a", "miou", "scratch") is None and read_score(tmp_path / "b", "miou") is None
    )


def break_json(folder: Path) -> None:
    (folder / "results.json").write_text("{")


def break_items(folder: Path) -> None:
    (folder / "items.npz").write_bytes(b"PK\x03\x04no")


def break_mean(folder: Path) -> None:
    np.savez(folder / "items.npz", index=np.arange(3), **{"student/miou": np.zeros(3)})


def break_shape(folder: Path) -> None:
    np.savez(folder / "items.npz", index=np.arange(2), **{"student/miou": np.ones(3)})


def break_metric(folder: Path) -> None:
    (folder / "results.json").write_text('{"student": {"miou": null, "top1": 3}}')


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_json, "results.json: cannot be read"),
        (break_items, "items.npz: cannot be read"),
        (break_mean, "items.npz: the mean of student/miou is 0, results.json says 1"),
        (break_shape, "items.npz: student/miou has shape (3,), index (2,)"),
        (break_metric, "results.json: no number 'miou' of student; known: top1"),
    ],
)
def test_a_damaged_run_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, said: str
) -> None:
    write(tmp_path / "out" / "a", [0.5, 1.5])
    damage(tmp_path / "out" / "a")
    report = {"metric": "miou", "rows": ["arm"], "columns": "arm"}
    study = {"output_dir": str(tmp_path / "out"), "axes": {"arm": {"a": []}}, "report": report}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    assert studies.main([str(tmp_path / "s.yaml"), "--table"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# --- the table ---


def test_a_table_says_mean_deviation_and_how_many(tmp_path: Path) -> None:
    for name, value in {"a.5%.s0": 0.5, "a.5%.s1": 0.7, "a.all.s0": 0.25, "b.all.s0": 0.125}.items():
        write(tmp_path / name, value)
    assert rows_of(a_study(tmp_path)) == {
        "miou": ["5%", "all"],
        "a": ["0.6000 ± 0.1414 (2)", "0.2500 (1)"],
        "b": ["-", "0.1250 (1)"],
    }
    assert rows_of(a_study(tmp_path, better="up"))["a"][1] == "**0.2500** (1)"
    assert rows_of(a_study(tmp_path, better="down"))["b"][1] == "**0.1250** (1)"
    assert rows_of(a_study(tmp_path, metric="params"))["b"][1] == "7.000 (1)"


def test_a_baseline_is_the_run_of_the_same_seed(tmp_path: Path) -> None:
    """Seeds far apart, arms not: unpaired, the interval would be some 20 wide; s2 has no counterpart."""
    for seed, level in enumerate([20.0, 40.0, 60.0]):
        write(tmp_path / f"a.5%.s{seed}", level + 1 + 0.5 * seed)
        if seed < 2:
            write(tmp_path / f"b.5%.s{seed}", level)
    rows = rows_of(a_study(tmp_path, seeds=3, baseline={"arm": "b"}))
    assert rows["a"] == ["41.50 ± 20.50 (3); +1.25 [+1.00 to +1.50, runs alone, 2 pairs]"]
    assert rows["b"] == ["30.00 ± 14.14 (2)"]
    text = study_tables.tabulate(a_study(tmp_path, seeds=3, baseline={"arm": "b"}), a_study(tmp_path).cells)
    assert "difference to arm b [95 % interval" in text and "runs alone: no scores of the same items" in text


def test_a_baseline_may_be_of_another_column_or_the_teacher(tmp_path: Path) -> None:
    write(tmp_path / "a.5%.s0", [10.0, 12.0], teacher={"miou": 14.0})
    write(tmp_path / "b.all.s0", [9.0, 11.0])
    crossed = rows_of(a_study(tmp_path, baseline={"arm": "b", "share": "all"}))
    assert crossed["a"] == ["11.00 (1); +1.00 [+1.00 to +1.00, items alone]", "-"]
    assert rows_of(a_study(tmp_path, baseline="teacher"))["a"][0] == "11.00 (1); -3.00 [one pair]"
    assert rows_of(a_study(tmp_path, baseline="teacher"))["b"][1] == "10.00 (1)"


# --- the figure ---


def test_the_figure_draws_the_means_and_deviations_of_the_cells_asked_for(tmp_path: Path) -> None:
    for name, value in {"a.5%.s0": 1.0, "a.5%.s1": 3.0, "a.all.s0": 5.0, "b.all.s0": 4.0}.items():
        write(tmp_path / name, value)
    study = a_study(tmp_path)
    (axes,) = study_tables.figure_of(study, study.cells).axes
    heights = {line.get_label(): line[0].get_ydata().tolist() for line in axes.containers}
    assert heights == {"a": [2.0, 5.0], "b": [4.0]}
    bars = axes.containers[0][2][0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars] == [
        pytest.approx([2 - np.sqrt(2), 2 + np.sqrt(2)]), pytest.approx([5, 5]),
    ]  # fmt: skip
    assert [text.get_text() for text in axes.get_xticklabels()] == ["5%", "all"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("share", "miou")
    (only,) = study_tables.figure_of(study, [cell for cell in study.cells if cell["arm"] == "b"]).axes
    assert [text.get_text() for text in only.get_xticklabels()] == ["all"]


def test_the_command_draws_a_png_and_the_same_one_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "out" / "a.$5", [1.0, 2.0])
    axes = {"arm": {"a": [], "b": []}, "cost": {"$5": [], "$9": []}}
    report = {"metric": "miou", "rows": ["arm"], "columns": "cost"}
    study = {"output_dir": str(tmp_path / "out"), "axes": axes, "report": report}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    paths = [tmp_path / "figures" / name for name in ("1.png", "2.png")]
    for path in paths:
        assert studies.main([str(tmp_path / "s.yaml"), "--table", "--only", "a", "--figure", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes() and paths[0].read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.startswith("| miou | $5 |\n|---|---|\n| a | 1.500 (1) |\n")
    assert not (tmp_path / "out" / "table.md").exists()
    assert studies.main([str(tmp_path / "s.yaml"), "--table", "--figure", str(tmp_path / "x.nosuch")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_finds_what_the_frozen_page_says(tmp_path: Path) -> None:
    """Real runs, through another tool's eyes: the page's `full` beside `cab`, compression_strong, at 5 %."""
    header = json.loads((ROOT / "docs" / "study" / "cells.json").read_text())
    with np.load(ROOT / "docs" / "study" / "correct.npz") as bits:
        for cell in header["cells"]:
            labels = cell["labels"]
            if labels["setting"] == "compression_strong" and labels["fraction"] == "5%":
                right = np.unpackbits(bits[".".join(labels.values())])[: cell["test_images"]]
                write(tmp_path / f"{labels['arm']}.{labels['seed']}", 100.0 * right, metric="top1")
    axes = {"arm": {"full": [], "cab": [], "kl": []}, "seed": {"s0": [], "s1": []}}
    report = {"metric": "top1", "rows": ["arm"], "columns": "arm", "baseline": {"arm": "cab"}}
    study = studies.Study({"output_dir": str(tmp_path), "axes": axes, "report": report})
    page = (ROOT / "docs" / "study_data_efficiency.md").read_text().split("## compression_strong, vim")[1]
    (line,) = [line for line in page.splitlines() if line.startswith("| `full` − `cab` | 5% | ")]
    theirs = [float(number) for number in re.findall(r"[+-][\d.]+", line)]
    mean, *mine = re.fullmatch(r"(.*); ([+-].*) \[(.*) to (.*)\]", rows_of(study)["full"][0]).groups()  # type: ignore[union-attr]
    assert f"| {mean} |" in page
    assert [float(number) for number in mine] == pytest.approx(theirs, abs=0.03) and len(theirs) == 3
