"""A task that reporting has never heard of: two evaluators, text, no pictures, metrics of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_run import Links
from torch import Tensor

from transmamba.core.batch import Batch
from transmamba.core.output import Logits
from transmamba.core.task import Answer, Listing, Matrix, Metric, Outcome, Pass, Runner, Sample
from transmamba.evaluation.measured import Measured
from transmamba.evaluation.run import measure
from transmamba.reporting.comparison import render_comparison
from transmamba.reporting.metrics import headline, metrics_of, read_results, write_results
from transmamba.reporting.model_card import Card, render_model_card
from transmamba.reporting.report import render
from transmamba.reporting.run_data import read_run
from transmamba.reporting.samples import packed, read_items, unpacked, write_samples
from transmamba.reporting.table import results_table

RECALL = Metric(key="recall", label="recall@1 %", form="{:.1f}", headline=True)
OVERLAP = Metric(key="overlap", label="same first hit %", form="{:.0f}")
ERROR = Metric(key="mae", label="error °C", form="{:.3f}", better="down")


class Embeds:
    """A model that embeds by a table, (N, 2)."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return {"text": self.table[batch.index]}

    def logits(self, batch: Batch) -> Logits:
        raise NotImplementedError

    def generate(self, batch: Batch, limit: int) -> Tensor:
        raise NotImplementedError


class Gathers:
    """What the two evaluators share: embeddings of all items."""

    split = "held_out"
    metrics: tuple[Metric, ...] = ()

    def batches(self, passing: Pass) -> Iterator[Batch]:
        for part in torch.arange(6).split(passing.batch_size):
            yield Batch({"text": torch.zeros(len(part), 3)}, {}, part, {"samples": len(part)})

    def start(self) -> dict[str, list[Tensor]]:
        return {}

    def add(self, tally: dict[str, list[Tensor]], runners: Mapping[str, Runner], batch: Batch) -> None:
        for name, runner in runners.items():
            tally.setdefault(name, []).append(runner.embed(batch)["text"])

    def finish(self, tallies: Sequence[dict[str, list[Tensor]]]) -> dict[str, Outcome]:
        (tally,) = tallies
        return {name: self.outcome(torch.cat(parts).double().numpy()) for name, parts in tally.items()}

    def outcome(self, table: Any) -> Outcome:
        raise NotImplementedError

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        return {}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        return []


class Retrieval(Gathers):
    metrics = (RECALL, OVERLAP)

    def outcome(self, table: Any) -> Outcome:
        hit = (table[:, 0] > 0).astype(float)
        return Outcome(
            {"recall": 100 * hit.mean()},
            {"recall": 100 * hit},
            np.arange(6),
            (
                Matrix("Likeness of captions", table @ table.T, row_label="caption", column_label="hit"),
                Listing("Hardest captions", ("caption", "rank"), [("a <b> cat", "17")]),
            ),
            answers=hit,
        )

    def compare(self, a: Outcome, b: Outcome) -> dict[str, float]:
        return {"overlap": 100 * float(np.mean(a.answers == b.answers))}

    def samples(self, outcomes: Mapping[str, Outcome], count: int) -> list[Sample]:
        said = tuple(Answer(name, f"hit {name}", None) for name in outcomes)
        return [Sample("first hits differ", said, text="which <one> is it?\nno picture")][:count]


class Regression(Gathers):
    metrics = (ERROR,)

    def outcome(self, table: Any) -> Outcome:
        error = np.abs(table[:, 1])
        return Outcome({"mae": error.mean()}, {"mae": error}, np.arange(10, 16))


def measured_with(seed: int) -> Measured:
    def table(number: int) -> Tensor:
        return torch.randn(6, 2, generator=torch.Generator().manual_seed(number)) + 0.4

    runners = {"student": Embeds(table(seed)), "teacher": Embeds(table(100))}
    return measure([Retrieval(), Regression()], runners, Pass(batch_size=4))


def write_run(folder: Path, seed: int, scores: bool = True) -> Measured:
    folder.mkdir()
    measured = measured_with(seed)
    (folder / "config.yaml").write_text(f"task: {{name: retrieval}}\nstudent: text_mamba\nlr: {seed}\n")
    rows = [{"step": 1, "samples": 8, "loss": 1.0}, {"step": 1, "eval/recall": 50.0 + seed}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {"watched": "held_out", "final": "held_out"}
    write_results(folder, measured.results(), (RECALL, OVERLAP, ERROR), splits)
    write_samples(folder, measured, 8)
    if not scores:
        (folder / "items.npz").unlink()
    return measured


def test_numbers_come_back_with_their_names(tmp_path: Path) -> None:
    measured = write_run(tmp_path / "a", 1)
    results = read_results(tmp_path / "a" / "results.json")
    assert {
        name: results[name] for name in ("student", "teacher", "agreement", "difference")
    } == measured.results()
    assert metrics_of(results) == (RECALL, OVERLAP, ERROR) and headline(metrics_of(results)) == RECALL
    items = read_items(tmp_path / "a" / "items.npz")
    assert [each.index.tolist() for each in items] == [list(range(6)), list(range(10, 16))]
    for each, key, outcomes in zip(items, ("recall", "mae"), measured.outcomes, strict=True):
        assert set(each.scores) == {f"student/{key}", f"teacher/{key}"}
        for name, outcome in outcomes.items():
            assert np.array_equal(each.scores[f"{name}/{key}"], outcome.items[key])


def test_results_that_are_not_finite_are_written_as_json_can(tmp_path: Path) -> None:
    path = write_results(tmp_path, {"student": {"recall": math.nan, "mae": 0.5}}, (RECALL, ERROR))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["student"] == {"recall": None, "mae": 0.5}
    student = read_results(path)["student"]
    assert math.isnan(student["recall"]) and student["mae"] == 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert "nan" in render(read_run(tmp_path))


def test_numpy_s_own_numbers_are_numbers(tmp_path: Path) -> None:
    """What an evaluator returned is written at the end of a run, where a failure would cost it all."""
    path = write_results(tmp_path, {"student": {"recall": np.float32(0.5), "mae": np.float16("inf")}}, ())
    assert json.loads(path.read_text())["student"] == {"recall": 0.5, "mae": None}
    sample = Sample("pairs", (Answer("student", "a", np.arange(2)[1] > 0),), label=np.str_("b"))
    listing = Listing("counts", ("n",), [(np.int64(3),)])
    samples, exhibits = unpacked(packed([sample], {"student": [listing]}))
    assert samples == [sample] and exhibits["student"][0].rows == [[3]]


def test_samples_and_exhibits_come_back(tmp_path: Path) -> None:
    measured = write_run(tmp_path / "a", 1)
    run = read_run(tmp_path / "a")
    (sample,) = run.samples
    assert sample == measured.samples(8)[0]
    matrix, listing = run.exhibits["teacher"]
    wanted, listed = measured.outcomes[0]["teacher"].exhibits
    assert isinstance(matrix, Matrix) and isinstance(wanted, Matrix) and isinstance(listing, Listing)
    assert isinstance(listed, Listing) and np.array_equal(matrix.values, wanted.values)
    assert (matrix.title, matrix.column_label) == (wanted.title, wanted.column_label)
    assert [tuple(row) for row in listing.rows] == list(listed.rows)


def test_the_report_shows_it(tmp_path: Path) -> None:
    measured = write_run(tmp_path / "a", 1)
    page = render(read_run(tmp_path / "a"))
    Links(page)
    recall = f"{measured.metrics('student')['recall']:.1f}"
    for text in (
        *("Student recall@1 %", recall, "error °C", "same first hit %", "recall@1 % on the held_out split"),
        *("Likeness of captions", "Hardest captions", "a &lt;b&gt; cat", "answers on the held_out split"),
        *("First hits differ", "which &lt;one&gt; is it?\nno picture", "hit teacher"),
    ):
        assert text in page, text
    for text in ("top-1", "<img", "✗", "images", "Accuracy by class"):
        assert text not in page, text


def test_table_and_card_show_it(tmp_path: Path) -> None:
    measured = write_run(tmp_path / "a", 1)
    results = read_results(tmp_path / "a" / "results.json")
    table = results_table(results, metrics_of(results))
    assert "recall@1 %" in table and "same first hit %" in table and "top-1" not in table
    card = Card(library="open_clip", pipeline_tag="feature-extraction", snippet="import open_clip")
    text = render_model_card(card, results=results, config={})
    cells = [f"{measured.metrics(name)['mae']:.3f}" for name in ("teacher", "student")]
    assert f"| error °C | {cells[0]} | {cells[1]} |" in text and "on the held_out split" in text


def test_two_runs_are_compared_item_by_item(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", 1), write_run(tmp_path / "b", 2)
    page = render_comparison([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    Links(page)
    error = b.metrics("student")["mae"] - a.metrics("student")["mae"]
    assert f"{error:+.3f}" in page and "error °C" in page and "95 % interval" in page
    assert "<code>lr</code></td><td>1</td><td>2</td>" in page and "<code>student</code>" not in page
    assert "recall@1 % on the held_out split" in page


@pytest.mark.parametrize(
    ("scores", "config", "why"),
    [
        (False, "task: {name: retrieval}", "they have no scores of the same items"),
        (True, "task: {name: retrieval, data: other}", "different items (task.data)"),
    ],
)
def test_what_cannot_be_compared_is_said(tmp_path: Path, scores: bool, config: str, why: str) -> None:
    write_run(tmp_path / "a", 1)
    write_run(tmp_path / "b", 2, scores)
    (tmp_path / "b" / "config.yaml").write_text(config)
    page = render_comparison([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    assert why in page and "95 % interval" not in page


def test_no_line_of_reporting_knows_a_task() -> None:
    """But for `earlier`, which reads what image classification left, and the default of its metrics."""
    import transmamba.reporting.report as report

    for path in Path(report.__file__).parent.glob("*"):
        if path.suffix not in (".py", ".jinja") or path.name == "earlier.py":
            continue
        text = path.read_text()
        for word in ("top1", "top-1", "retrieval", "image_classification", "image-classification"):
            found = [line for line in text.splitlines() if word in line and "`" not in line]
            assert not found, (path.name, found)
