"""Several runs on one page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from made_up_run import (
    CONFIG,
    RESULTS,
    Links,
    full_run,
    made_up_rows,
    made_up_samples,
    write_run,
)

from transmamba.core.task import Metric
from transmamba.errors import UserError
from transmamba.reporting.comparison import compared, paired, render_comparison, write_comparison
from transmamba.reporting.run_data import RunData
from transmamba.reporting.samples import Items


def scored(name: str, right: np.ndarray, nll: np.ndarray, **changes: object) -> RunData:
    items = Items(np.arange(len(right)), {"student/top1": 100.0 * right, "student/nll": nll})
    return RunData(name=name, results=RESULTS, items=[items], **changes)  # type: ignore[arg-type]


def test_both_runs_are_on_the_page() -> None:
    changed = CONFIG | {"student": {"name": "ssd_vit", "depth": 24}, "stages": []}
    other = full_run(config=changed, name="run-2", rows=made_up_rows(40))
    page = render_comparison([full_run(), other])
    Links(page)
    for text in ("run-1", "run-2", "90.25", "91.50", "Loss: feature", "Loss: kl", "Gradient norm"):
        assert text in page, text
    assert "<code>student.name</code></td><td>vim</td><td>ssd_vit</td>" in page
    assert "<code>stages.0.losses.0.name</code></td><td>feature</td><td>–</td>" in page
    assert "student.depth" not in page and "4 × Fast GPU" in page
    assert page.count(">run-1</text>") == page.count(">run-2</text>") >= 6


def test_a_sure_difference_and_one_that_is_not() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(2000) < 0.5
    better = right | (generator.random(2000) < 0.2)
    nll = generator.random(2000)
    page = render_comparison(
        [scored("a", right, nll), scored("b", better, nll + generator.normal(0, 1, 2000))]
    )
    rows = [line for line in page.splitlines() if line.strip().startswith("<tr><th>") and ">2,000<" in line]
    assert len(rows) == 2
    assert "top-1 %" in rows[0] and ">better<" in rows[0]
    assert f"{100 * (better.mean() - right.mean()):+.2f}" in rows[0]
    assert f">{100 * better.mean() / right.mean():.1f} (" in rows[0] and "ratio % [95 %]" in page
    assert "NLL nats" in rows[1] and ">not sure<" in rows[1]


def test_more_of_what_should_be_less_is_worse() -> None:
    right, nll = np.ones(50, dtype=bool), np.linspace(0, 1, 50)
    page = render_comparison([scored("a", right, nll), scored("b", right, nll + 0.5)])
    assert ">worse<" in page and ">better<" not in page and "+0.5000 to +0.5000" in page


def test_metrics_of_other_data_are_compared_where_those_are_the_same() -> None:
    """Whatever the place of their evaluators; retrieval is compared in any case."""
    right = np.random.default_rng(0).random(50) < 0.5

    def run(sets: list[str], probe: str | None, order: int) -> RunData:
        keys = ["mean_recall", "zero_shot_top1", "probe_top1"]
        items = [Items(np.arange(50), {f"student/{key}": 100.0 * right}) for key in keys]
        config = {"task": {"name": "image_text", "zero_shot": sets, "probe": probe}}
        metrics = [dataclasses.asdict(Metric(key=key, label=key)) for key in keys]
        results = {"student": dict.fromkeys(keys, 50.0), "metrics": metrics}
        return RunData(name="x", results=results, items=items[::order], config=config)

    first = run(["a"], "b", 1)
    for other, missing in (
        (run(["a"], "b", -1), set()),
        (run(["other"], "b", 1), {"zero_shot_top1"}),
        (run([], None, -1), {"zero_shot_top1", "probe_top1"}),
    ):
        found, why = paired(first, other, first.metrics)
        assert found.keys() == {"mean_recall", "zero_shot_top1", "probe_top1"} - missing and not why
        assert all(each.mean == 0 and each.items == 50 for each in found.values())


def test_runs_on_different_splits_are_not_compared() -> None:
    right, nll = np.ones(50, dtype=bool), np.ones(50)
    held_out = {"task": {"validation": 0.1}}
    page = render_comparison([scored("a", right, nll), scored("b", right, nll, config=held_out)])
    assert "on the test split, the other on the validation split" in page


def test_three_runs_of_one_name() -> None:
    page = render_comparison([dataclasses.replace(RunData(name="x", results=RESULTS))] * 3)
    Links(page)
    assert "x (1)" in page and "x (3)" in page and page.count("The student of") == 2


def test_write_comparison(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, made_up_samples())
        (tmp_path / name / "scratch" / "metrics.jsonl").unlink()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    page = write_comparison([tmp_path / "a", tmp_path / "b"])
    assert page == tmp_path / "b" / "comparison.html" and "60" in page.read_text(encoding="utf-8")
    other = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "c.html")
    assert other.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    with pytest.raises(UserError, match="needs two runs"):
        write_comparison([tmp_path / "a"])
    numbers = compared([tmp_path / "a", tmp_path / "b", tmp_path / "a"])
    assert numbers["against"] == "a (1)" and list(numbers["runs"]) == ["b", "a (3)"]
    top1 = numbers["runs"]["b"]["difference"]["top1"]
    assert top1["mean"] == 0 and top1["ratio"] == 1 and top1["items"] == 60
    (tmp_path / "b" / "samples.npz").unlink()
    (tmp_path / "b" / "items.npz").unlink(missing_ok=True)
    assert "no scores" in compared([tmp_path / "a", tmp_path / "b"])["runs"]["b"]["why"]
    with pytest.raises(UserError, match="--output"):
        write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "none" / "c.html")
