"""Invariant 5 of texts and videos: clips with tiles, a scan over frames and its shuffled control, stopped in
the middle, go on to the uninterrupted run, bit for bit on the CPU."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from tiny_clip import made

from transmamba.config import load as configs
from transmamba.core.tower import StudentSpec
from transmamba.ecosystems.find import save_model
from transmamba.runs.recipe import Recipe
from transmamba.students.clip.names import Clip, ImageTower
from transmamba.subcloning.convert import carry
from transmamba.subcloning.subclone import SubcloneConfig, subclone
from transmamba.teachers.load import adapt_teacher

pytest.importorskip("open_clip", reason="needs open_clip")

RECIPE = """
task:
  name: image_text
  data: {name: scene_clips, side: 16, frames: 3, count_train: 20, count_test: 6, tiles: {filling: 0.0}}
  shuffle_frames: true
teacher: {name: open_clip}
student: {name: open_clip, pretrained: true, num_frames: 3}
init: null
stages:
  - {losses: [contrastive, embedding_cosine], steps: 7, lr: 3.0e-3}
trainer: {global_batch: 8, micro_batch: 4, save_every: 2, log_every: 1, eval_every: 4, eval_batch_size: 4}
seed: 3
"""


def recipe(folder: Path, run: str) -> Recipe:
    values: dict[str, Any] = yaml.safe_load(RECIPE)
    values["output_dir"] = str(folder / run)
    values["teacher"]["model"], values["student"]["model"] = str(folder / "teacher"), str(folder / "student")
    values["task"]["data"]["tiles"]["digits"] = {"name": "npz", "path": str(folder / "digits.npz")}
    return configs.parse(Recipe, values, "clips")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A teacher, its converted student, and digits."""
    model = made()
    teacher = adapt_teacher(model)
    save_model(model, tmp_path / "teacher", teacher.preprocessing)
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing)
    student: Any = Clip(image=ImageTower(kind="ssd_vit")).build(spec)
    carry(student, teacher)
    subclone(student, teacher, SubcloneConfig(importance="uniform"))
    save_model(student, tmp_path / "student", teacher.preprocessing)
    arrays = {"images": np.random.default_rng(0).integers(0, 255, (20, 7, 7), dtype=np.uint8)}
    arrays["labels"] = np.arange(20) % 10
    np.savez(
        tmp_path / "digits.npz",
        **{f"{split}_{key}": array for split in ("train", "test") for key, array in arrays.items()},
    )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5])
def test_a_stopped_run_goes_on_to_the_same(folder: Path, step: int) -> None:
    whole, stopped = recipe(folder, "whole"), recipe(folder, "stopped")
    harness.finish(harness.start(harness.run_quietly, whole))
    harness.finish(harness.start(harness.signalled, stopped, signal.SIGTERM, step))
    assert not (folder / "stopped" / "results.json").exists()
    harness.finish(harness.start(harness.run_quietly, stopped))
    assert harness.metrics_rows(folder / "stopped") == harness.metrics_rows(folder / "whole")
    one, other = (
        load_file(next((folder / run / "student").glob("*.safetensors"))) for run in ("stopped", "whole")
    )
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    results = [
        harness.without_timing(json.loads((folder / run / "results.json").read_text()))
        for run in ("stopped", "whole")
    ]
    assert results[0] == results[1] and "shuffled_mean_recall" in results[0]["student"]
