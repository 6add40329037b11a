"""The report: one page, nothing fetched or trusted, every missing file survived, runs of any age read."""

from __future__ import annotations

import dataclasses
import functools
import json
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_up_run import (
    CONFIG,
    DIFFERENCE,
    RESULTS,
    SUBCLONE,
    Links,
    full_run,
    made_up_rows,
    made_up_samples,
    write_run,
)

from transmamba.errors import UserError
from transmamba.reporting import charts
from transmamba.reporting.earlier import converted
from transmamba.reporting.report import render, write_report
from transmamba.reporting.run_data import RunData, read_run
from transmamba.reporting.samples import packed


@pytest.fixture(autouse=True, scope="module")
def drawn_once() -> Iterator[None]:
    """A chart of the same numbers as one before is not drawn again, which is nearly all that a page takes."""
    known: dict[bytes, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_panel", "_by_layer"):
            patch.setattr(charts, name, functools.partial(drawn, getattr(charts, name), known))
        yield


def drawn(draw: Callable[..., Any], known: dict[bytes, Any], *given: Any) -> Any:
    key = pickle.dumps((draw.__name__, given))
    if key not in known:
        known[key] = draw(*given)
    return known[key]


@functools.cache
def full_page() -> str:
    return render(full_run())


def test_everything_is_on_the_page() -> None:
    page = full_page()
    for text in (
        *("vit_tiny_patch16_224", "vim", "90.25", "91.50", "94.75", "-1.25 to the teacher", "24 M"),
        *("Student top-1 %", "agreement %", "NLL nats", "0.3500", "22,000,000", "1,200", "samples/s"),
        *("from scratch", "Loss terms", "Learning rate", "Gradient norm", "Samples per second"),
        *("top-1 % on the test split", "feature, bwd", "feature, fwd", "align", "distil"),
        *("Confusions, % of a label", "Most frequent confusions, of 60 test images", "Accuracy by class"),
        *("The same of the teacher", "Student and teacher differ", "Both right"),
        *("87.5 %", "copied: 30 tensors", "1.4 min", "5.0 %", "1,620 MiB", "depth: 24"),
        *("2026-01-02 03:04 UTC", "recipes/distill.py --config", "abc1234", "4 × Fast GPU", "timm 1.0.20"),
        "Resolved configuration",
    ):
        assert text in page, text
    assert "Left out" not in page and " MB" not in page


def test_how_sure_student_against_teacher_is() -> None:
    page = render(full_run(results={**RESULTS, **DIFFERENCE}))
    assert "-1.25 to the teacher (-2.00 to -0.50)" in page
    (row,) = [line for line in page.splitlines() if "<tr><th>top-1 %</th>" in line]
    assert re.findall(r">([^<>]+)</td>", row)[-2:] == ["-1.25 (-2.00 to -0.50)", "98.6 (97.8 to 99.5)"]
    assert "items are resampled" in page and "items are resampled" not in full_page()


def test_the_page_is_self_contained() -> None:
    links = Links(full_page())
    assert links.fetched and all(link.startswith(("data:image/", "#")) for link in links.fetched)
    assert not links.tags & {"script", "link", "iframe"}
    styles = re.findall(r"<style.*?</style>", full_page(), flags=re.DOTALL)
    assert not any("@import" in style or "url(http" in style for style in styles)


def test_charts_take_the_colours_of_the_page() -> None:
    page = full_page()
    assert "currentColor" in page and "var(--rule)" in page
    assert "mathdefault" not in page
    assert "#010203" not in page and "#040506" not in page


def test_names_are_escaped() -> None:
    page = full_page()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "blocks.0.mixer.&lt;x&gt;" in page


def test_render_is_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_panel", "_by_layer"):
        monkeypatch.setattr(charts, name, getattr(charts, name).args[0])  # drawn again
    assert render(full_run()) == full_page()


def test_an_empty_run_is_a_page_with_a_note() -> None:
    page = render(RunData(name="empty"))
    Links(page)
    assert "Left out, because the run did not write it: results.json" in page
    assert "<svg" not in page and "<h2" not in page


@pytest.mark.parametrize(
    "part",
    [field.name for field in dataclasses.fields(RunData) if field.name != "name"],
    ids=lambda part: f"no-{part}",
)
def test_any_part_may_be_missing(part: str) -> None:
    values = {field: getattr(full_run(), field) for field in full_run().__dataclass_fields__ if field != part}
    Links(render(RunData(**values)))


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "loss": 1.0}],
        [{"step": 1, "loss": None, "samples": 3}],
        [{"step": 1, "eval/top1": 3.0}],
        [{"step": 5, "samples": 10, "similarity/feature/0": 0.5}],
        [{"step": 5, "samples": 10, "similarity/feature/0": None}],
        [
            {"step": 0, "samples": 0, "stage": 0, "loss": 0.0},
            {"step": 1, "samples": 0, "stage": 1, "loss": -1.0},
        ],
    ],
)
def test_little_is_enough(rows: list[dict[str, Any]]) -> None:
    Links(render(RunData(name="x", rows=rows)))


def test_many_classes_and_big_images() -> None:
    names = np.array([f"class {k}" for k in range(200)])
    samples, exhibits, _ = converted(made_up_samples(size=128) | {"class_names": names}, "test")
    page = render(RunData(name="x", samples=samples, exhibits=exhibits))
    Links(page)
    assert "data:image/jpeg" in page and "class 3" in page


def test_samples_without_images_or_teacher() -> None:
    arrays = made_up_samples()
    samples, exhibits, _ = converted({key: arrays[key] for key in ("labels", "student_pred")}, "test")
    page = render(RunData(name="x", samples=samples, exhibits=exhibits))
    assert "Most frequent confusions" in page and "Examples" not in page and "of the teacher" not in page


def test_long_runs_stay_small() -> None:
    assert len(render(RunData(name="x", rows=made_up_rows(steps=6000, layers=2)))) < 1_500_000


def test_write_report(tmp_path: Path) -> None:
    run = full_run()
    write_run(tmp_path / "run-1", packed(run.samples, run.exhibits))
    page = write_report(tmp_path / "run-1")
    assert page == tmp_path / "run-1" / "report.html"
    assert page.read_text(encoding="utf-8") == full_page()
    (tmp_path / "run-1" / "student").mkdir()
    assert write_report(tmp_path / "run-1" / "student").parent.name == "run-1"


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "none")


def test_a_report_goes_where_it_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "run-1", {})
    (tmp_path / "run-1" / "metrics.jsonl").unlink()
    page = write_report(tmp_path / "run-1", tmp_path / "page.html")
    assert page == tmp_path / "page.html" and page.is_file()
    assert not (tmp_path / "run-1" / "report.html").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """As of a run on a read-only disk; a folder in the page's place, for root may write everywhere."""
    write_run(tmp_path / "run-1", {})
    (tmp_path / "run-1" / "metrics.jsonl").unlink()
    (tmp_path / "run-1" / "report.html").mkdir()
    with pytest.raises(UserError) as caught:
        write_report(tmp_path / "run-1")
    text = str(caught.value)
    assert str(tmp_path / "run-1") in text and "--output report.html" in text and "\n" not in text


def test_runs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """images_per_second, an agreement that is a number, arrays of predictions, no metrics and no items."""
    folder = tmp_path / "run-1"
    write_run(folder, made_up_samples())
    results = {key: value for key, value in RESULTS.items() if key != "metrics"} | {"agreement": 94.75}
    results["teacher"] = {k.replace("samples_per", "images_per"): v for k, v in RESULTS["teacher"].items()}
    (folder / "results.json").write_text(json.dumps(results))
    assert render(read_run(folder)) == full_page()
    (items,) = read_run(folder).items
    right = made_up_samples()["student_pred"] == made_up_samples()["labels"]
    assert items.scores["student/top1"].tolist() == (100.0 * right).tolist()


@pytest.mark.parametrize("content", ["", '{"student": {"top1": 9', "[1, 2]", "3"])
def test_torn_results_are_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json: .*run again") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["results.json", "config.yaml", "samples.npz", "items.npz", "metrics.jsonl"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / name).write_text("{ : [\n")
    with pytest.raises(UserError, match=re.escape(name)):
        read_run(tmp_path)


def test_what_is_not_used_of_the_teacher_is_said() -> None:
    page = render(RunData(name="x", subclone=SUBCLONE | {"unused": ["blocks.3.mlp"]}))
    assert "from which nothing was taken: blocks.3.mlp" in page
    assert "from which nothing was taken" not in full_page()


def test_a_held_out_share_is_not_called_test(tmp_path: Path) -> None:
    """Where `task.validation` holds images out, nothing was measured on the test split."""

    def page(config: dict[str, Any], results: dict[str, Any]) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        write_run(folder, made_up_samples())
        (folder / "scratch" / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").write_text('{"step": 1, "eval/top1": 3.0}\n')
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "results.json").write_text(json.dumps(results))
        return render(read_run(folder))

    config = CONFIG | {"task": {"name": "image_classification", "validation": 0.1}}
    held_out = page(config, RESULTS)
    assert "top-1 % on the validation split" in held_out and "of 60 validation images" in held_out
    assert "test split" not in held_out and "test images" not in held_out
    final = CONFIG | {"task": {"name": "image_classification", "validation": 0.1, "final_split": "test"}}
    for shown in (
        page(final, RESULTS),
        page(CONFIG, RESULTS | {"splits": {"watched": "validation", "final": "test"}}),
    ):
        assert "top-1 % on the validation split" in shown, "the curves are what was watched"
        assert "of 60 test images" in shown and "validation images" not in shown


def test_a_run_without_a_teacher_claims_none() -> None:
    config = {"student": {"name": "timm", "model": "vit_tiny"}, "teacher": None}
    page = render(RunData(name="x", config=config, results={"student": {"top1": 90.0}}))
    assert "<h1>vit_tiny</h1>" in page and "teacher →" not in page


def test_the_run_from_scratch_is_in_the_charts() -> None:
    """Its loss, gradients and speed too, not only its accuracy."""
    with_it, without = full_page(), render(full_run(scratch_rows=[]))
    legend = re.compile(r">from scratch</text>")
    assert len(legend.findall(with_it)) == 5 and not legend.findall(without)
