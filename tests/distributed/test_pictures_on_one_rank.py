"""FSDP2 on two processes, of which one has pictures and the other has none."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import harness
import pytest
from PIL import Image
from small_language import write_jsonl
from small_llava import SIDE, llava_folder

from transmamba.config import load as configs
from transmamba.runs.recipe import Recipe


def recipe_of(folder: Path, student: str) -> Recipe:
    """Every second question has a picture: in evaluation all of one process's, none of the other's."""
    model = str(llava_folder(folder / "llava", context=160))
    Image.new("RGB", (SIDE, SIDE), (200, 30, 30)).save(folder / "red.png")
    seen: list[dict[str, Any]] = [{"image": "red.png"}, {}]
    rows = [dict(question=f"What is {n}?", answers=["red"], **seen[n % 2]) for n in range(8)]
    data = dict(name="jsonl", train=write_jsonl(folder / "q.jsonl", rows), test=str(folder / "q.jsonl"))
    alone = dict(name="alone", losses=["cross_entropy"], steps=3, lr=1e-3, trainable="decoder")
    values: dict[str, Any] = dict(
        output_dir=str(folder / "run"),
        task=dict(name="questions", data=data, writing="never"),
        student=dict(name="hf_llava", model=model),
        init=None,
        stages=[alone, {**alone, "name": "all", "trainable": "all"}],
        trainer=dict(global_batch=2, eval_every=1, eval_batch_size=2, log_every=1),
    )
    if student == "llava":
        parts = dict(image=dict(kind="vim"), decoder=dict(kind="hybrid"))
        values |= dict(student=dict(name="llava", **parts), teacher=dict(name="llava", model=model), init={})
    made: Recipe = configs.parse(Recipe, values, "recipe")
    return made


def launched(recipe: Recipe) -> None:
    os.environ.update(harness.FSDP2)
    harness.run_quietly(recipe)


@pytest.mark.parametrize("student", ["llava", pytest.param("hf_llava", marks=pytest.mark.slow)])
def test_both_go_on_together(student: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, student)
    harness.in_ranks(2, launched, recipe, timeout=60)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    found = [row["loss/cross_entropy"] for row in map(json.loads, lines) if "loss/cross_entropy" in row]
    assert len(found) == 6 and all(map(math.isfinite, found))
