"""The report: one page, nothing fetched, nothing trusted, every missing file survived. And the model card."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from transmamba.errors import UserError
from transmamba.reporting.model_card import render_model_card, write_model_card
from transmamba.reporting.report import render, write_report
from transmamba.reporting.run_data import RunData, read_run

CLASSES = ["cat", "dog", "<script>alert(1)</script>", "$x$ & y"]


def made_up_rows(steps: int = 120, layers: int = 4) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        stage = int(step > steps // 2)
        row = {"step": step, "stage": stage, "stage_name": ["align", "distil"][stage], "samples": step * 32}
        row |= {"seconds": step * 0.7, "loss": 3 / step + 0.1 * (step % 5), "loss/feature": 2 / step}
        row |= {
            "loss/kl": None if step == 3 else 0.5 / step,
            "lr": 1e-3 * (1 - step / steps),
            "data_wait": 0.05,
        }
        row |= {"samples_per_second": 800.0, "peak_memory_mb": 1500.0 + step}
        for layer in range(layers):
            row |= {
                f"similarity/feature/{layer}/{branch}": 1 - 1 / (step + layer) for branch in ("fwd", "bwd")
            }
        rows.append(row)
        if step % 20 == 0:
            rows.append({"step": step, "eval/top1": 80 - 40 / step, "eval/top5": 95.0})
    return rows


def made_up_samples(size: int = 16) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 60)
    teacher = np.where(random.random(60) < 0.9, labels, (labels + 1) % 4)
    student = np.where(random.random(60) < 0.8, teacher, (labels + 2) % 4)
    index = np.arange(0, 60, 2)
    images = random.integers(0, 255, (len(index), size, size, 3), dtype=np.uint8)
    return {
        "labels": labels,
        "teacher_pred": teacher,
        "student_pred": student,
        "class_names": np.array(CLASSES),
        "images": images,
        "image_index": index,
    }


RESULTS = {
    "teacher": {
        "top1": 91.5,
        "top5": 99.0,
        "ece": 2.0,
        "nll": 0.31,
        "params": 22e6,
        "images_per_second": 1200.0,
    },
    "student": {"top1": 90.25, "top5": 98.5, "ece": 3.0, "nll": 0.35, "params": 24e6, "minutes": 12.0},
    "scratch": {"top1": 60.5, "params": 24e6},
    "agreement": 94.75,
}
CONFIG = {
    "teacher": {"name": "timm_vit", "model": "vit_tiny_patch16_224"},
    "student": {"name": "vim", "depth": 24},
    "stages": [{"name": "align", "losses": [{"name": "feature", "weight": 1.0}], "steps": 60}],
}
SUBCLONE = {
    "covered": 0.875,
    "counts": {"copied": 30, "sliced": 10, "permuted": 4, "fresh": 8},
    "rows": [
        {"target": "blocks.0.mixer.<x>", "source": "blocks.0.attn.v", "kind": "copied", "shape": [192, 192]}
    ],
    "dropped_biases": ["blocks.0.attn.q.bias"],
}


def full_run() -> RunData:
    return RunData(
        name="run-1",
        results=RESULTS,
        rows=made_up_rows(),
        scratch_rows=made_up_rows(),
        config=CONFIG,
        samples=made_up_samples(),
        subclone=SUBCLONE,
    )


class Links(HTMLParser):
    """Collects what a browser would fetch; checks that each element is closed and no id is used twice."""

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [
            value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset")
        ]
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_everything_is_on_the_page() -> None:
    page = render(full_run())
    for text in (
        *(
            "vit_tiny_patch16_224",
            "vim",
            "90.25 %",
            "91.50 %",
            "94.75 %",
            "-1.25 points to the teacher",
            "24 M",
        ),
        *(
            "from scratch",
            "Loss terms",
            "Learning rate",
            "Top-1 on the test split",
            "feature, bwd",
            "feature, fwd",
        ),
        *(
            "What the student confuses",
            "Student and teacher differ",
            "Both right",
            "87.5 %",
            "copied: 30 tensors",
        ),
        *("1.4 min", "5.0 %", "1,620 MB", "Resolved configuration", "depth: 24", "align", "distil"),
    ):
        assert text in page, text
    assert "Left out" not in page


def test_the_page_is_self_contained() -> None:
    links = Links(render(full_run()))
    assert links.fetched and all(link.startswith(("data:image/", "#")) for link in links.fetched)
    assert not links.tags & {"script", "link", "iframe"}
    styles = re.findall(r"<style.*?</style>", render(full_run()), flags=re.DOTALL)
    assert not any("@import" in style or "url(http" in style for style in styles)


def test_charts_take_the_colours_of_the_page() -> None:
    page = render(full_run())
    assert "currentColor" in page and "var(--rule)" in page
    assert "mathdefault" not in page
    assert "#010203" not in page and "#040506" not in page


def test_names_are_escaped() -> None:
    page = render(full_run())
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "blocks.0.mixer.&lt;x&gt;" in page


def test_render_is_pure() -> None:
    run = full_run()
    assert render(run) == render(run)


def test_an_empty_run_is_a_page_with_a_note() -> None:
    page = render(RunData(name="empty"))
    Links(page)
    assert "Left out, because the run did not write it: results.json" in page
    assert "<svg" not in page and "<h2" not in page


@pytest.mark.parametrize(
    "part",
    ["results", "rows", "scratch_rows", "config", "samples", "subclone"],
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
    samples = made_up_samples(size=128) | {"class_names": np.array([f"class {k}" for k in range(200)])}
    page = render(RunData(name="x", samples=samples))
    assert "data:image/jpeg" in page and "class 3" in page


def test_samples_without_images_or_teacher() -> None:
    samples = made_up_samples()
    page = render(RunData(name="x", samples={key: samples[key] for key in ("labels", "student_pred")}))
    assert "What the student confuses" in page and "Examples" not in page


def test_long_runs_stay_small() -> None:
    assert len(render(RunData(name="x", rows=made_up_rows(steps=6000, layers=2)))) < 1_500_000


def write_run(folder: Path) -> None:
    (folder / "scratch").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (folder / "subclone.json").write_text(json.dumps(SUBCLONE))
    np.savez(folder / "samples.npz", allow_pickle=False, **made_up_samples())
    lines = "".join(json.dumps(row) + "\n" for row in made_up_rows())
    (folder / "metrics.jsonl").write_text(lines)
    (folder / "scratch" / "metrics.jsonl").write_text(lines)


def test_write_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run-1")
    page = write_report(tmp_path / "run-1")
    assert page == tmp_path / "run-1" / "report.html"
    assert page.read_text(encoding="utf-8") == render(full_run())
    (tmp_path / "run-1" / "student").mkdir()
    assert write_report(tmp_path / "run-1" / "student").parent.name == "run-1"


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        write_report(tmp_path / "none")


@pytest.mark.parametrize("name", ["results.json", "config.yaml", "samples.npz", "metrics.jsonl"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{ : [\n")
    with pytest.raises(UserError, match=re.escape(name)):
        read_run(tmp_path)


# --- model card ---


def test_model_card(tmp_path: Path) -> None:
    task = {
        "name": "image_classification",
        "data": {"name": "image_folder", "root": "/home/me/a|b"},
        "fraction": 0.25,
    }
    config = CONFIG | {"task": task}
    card = write_model_card(tmp_path, results=RESULTS, config=config, base_model="timm/vit")
    assert card == tmp_path / "README.md"
    front, text = card.read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front) == {
        "license": "apache-2.0",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "mamba", "transmamba", "distillation"],
        "base_model": "timm/vit",
    }
    for line in (
        "# vim from vit_tiny_patch16_224",
        "import transmamba  # registers the student's architecture with timm",
        'model = timm.create_model("local-dir:PATH/TO/THIS/FOLDER", pretrained=True).eval()',
        "- Data: image_folder (root: a\\|b), 25 % of the training images",
        "| align | feature × 1 | steps 60 |",
        "| | teacher | student | scratch |",
        "|---|---:|---:|---:|",
        "| Top-1 accuracy | 91.50 % | 90.25 % | 60.50 % |",
        "Student and teacher give the same top-1 answer on 94.75 % of its images.",
        "## Results on the test split",
    ):
        assert line in text.splitlines(), line
    assert "\n\n\n" not in text


def test_what_is_not_used_of_the_teacher_is_said() -> None:
    page = render(dataclasses.replace(full_run(), subclone=SUBCLONE | {"unused": ["blocks.3.mlp"]}))
    assert "from which nothing was taken: blocks.3.mlp" in page
    assert "from which nothing was taken" not in render(full_run())


def test_a_held_out_share_is_not_called_test() -> None:
    """Where `task.validation` holds images out, nothing was measured on the test split."""
    config = CONFIG | {"task": {"name": "image_classification", "validation": 0.1}}
    card = render_model_card(results=RESULTS, config=config)
    assert "## Results on the validation split" in card and "test" not in card
    page = render(dataclasses.replace(full_run(), config=config))
    assert "Top-1 on the validation split" in page and "60 validation images" in page
    assert "test split" not in page and "test images" not in page
    final = CONFIG | {"task": {"name": "image_classification", "validation": 0.1, "final_split": "test"}}
    assert "## Results on the test split" in render_model_card(results=RESULTS, config=final)
    page = render(dataclasses.replace(full_run(), config=final))
    assert "Top-1 on the validation split" in page, "the curves are what was watched"
    assert "60 test images" in page and "validation images" not in page


def test_model_card_of_a_student_without_a_run() -> None:
    text = render_model_card(results={}, config={"teacher": "timm_vit", "student": "vim"})
    assert "# vim from timm_vit" in text
    assert "Results" not in text and "Data" not in text and "\n\n\n" not in text


def test_a_run_without_a_teacher_claims_none() -> None:
    config = {"student": {"name": "timm", "model": "vit_tiny"}, "teacher": None}
    card = render_model_card(results={"student": {"top1": 90.0}}, config=config)
    assert "# vit_tiny\n" in card and "teacher" not in card.lower() and "distillation" not in card
    page = render(RunData(name="x", config=config, results={"student": {"top1": 90.0}}))
    assert "<h1>vit_tiny</h1>" in page and "teacher →" not in page


def test_a_transformers_student_is_loaded_by_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    text = write_model_card(tmp_path, results={}, config={"student": "hf_vit"}).read_text()
    assert "library_name: transformers" in text and "from_pretrained" in text and "timm" not in text


def test_the_hub_accepts_the_front_matter(tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    card = huggingface_hub.ModelCard(render_model_card(results=RESULTS, config=CONFIG))
    assert card.data.library_name == "timm" and card.data.license == "apache-2.0"
