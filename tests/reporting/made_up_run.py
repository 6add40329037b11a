"""A finished run as a folder holds it, of which nothing was trained; and what a browser makes of a page."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from transmamba.evaluation.classification import ClassificationEvaluator
from transmamba.reporting.earlier import converted
from transmamba.reporting.run_data import RunData

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
        row |= {"grad_norm": 1 / step, "samples_per_second": 800.0, "peak_memory_mb": 1500.0 + step}
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
        "samples_per_second": 1200.0,
    },
    "student": {"top1": 90.25, "top5": 98.5, "ece": 3.0, "nll": 0.35, "params": 24e6, "minutes": 12.0},
    "scratch": {"top1": 60.5, "params": 24e6},
    "agreement": {"agreement": 94.75},
    "metrics": [dataclasses.asdict(metric) for metric in ClassificationEvaluator.METRICS],
}
# what a run with a teacher has beside them
DIFFERENCE = {
    "difference": {
        "top1": {
            "mean": -1.25,
            "low": -2.0,
            "high": -0.5,
            "items": 400,
            "ratio": 0.98634,
            "ratio_low": 0.978,
            "ratio_high": 0.995,
        },
        "nll": {"mean": 0.04, "low": 0.01, "high": 0.07, "items": 400, "ratio": None},
    }
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


ENVIRONMENT = {
    "packages": {"torch": "2.11.0", "timm": "1.0.20"},
    "python": "3.12.1",
    "device": "Fast GPU",
    "num_processes": 4,
    "commit": "abc1234",
    "date": "2026-01-02 03:04 UTC",
    "command": "recipes/distill.py --config recipes/configs/digits.yaml",
}


def full_run(**changes: Any) -> RunData:
    samples, exhibits, items = converted(made_up_samples(), "test")
    values: dict[str, Any] = dict(
        name="run-1",
        results=RESULTS,
        rows=made_up_rows(),
        scratch_rows=made_up_rows(),
        config=CONFIG,
        samples=samples,
        exhibits=exhibits,
        items=items,
        subclone=SUBCLONE,
        environment=ENVIRONMENT,
    )
    return RunData(**values | changes)


def write_run(folder: Path, arrays: dict[str, Any]) -> None:
    """Everything but items.npz, with this samples.npz."""
    (folder / "scratch").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (folder / "subclone.json").write_text(json.dumps(SUBCLONE))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    np.savez(folder / "samples.npz", allow_pickle=False, **arrays)
    lines = "".join(json.dumps(row) + "\n" for row in made_up_rows())
    (folder / "metrics.jsonl").write_text(lines)
    (folder / "scratch" / "metrics.jsonl").write_text(lines)


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
