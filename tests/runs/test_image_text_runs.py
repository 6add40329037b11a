"""Whole runs of the task image_text: from pictures alone, from a stored teacher, with everything measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import metrics_rows, run_quietly
from PIL import Image
from tiny_clip import made

import transmamba
from transmamba.config import load as configs
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.reporting.metrics import read_results
from transmamba.reporting.report import write_report
from transmamba.runs.recipe import Recipe

open_clip = pytest.importorskip("open_clip", reason="needs open_clip")
SCENES = {"name": "scenes", "side": 16, "count_train": 20, "count_test": 6}
CLASSES = {"name": "synthetic", "num_train": 12, "num_test": 6, "num_classes": 3, "size": 16}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "clip"
    save_model(made(), folder)
    return folder


def recipe_of(clip: Path, run: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = dict(
        output_dir=str(run),
        task=dict(name="image_text", data=SCENES),
        teacher=dict(name="open_clip", model=str(clip)),
        student=dict(name="clip"),
        init=dict(layers="all", calibration_images=4),
        stages=[
            dict(name="distill", losses=[dict(name="embedding_cosine", tower="image")], steps=6, lr=1e-3)
        ],
        trainer=dict(global_batch=8, micro_batch=4, save_every=0, log_every=2, eval_every=3),
    )
    return configs.parse(Recipe, {**values, **changes}, "tiny")


def folder_of_pictures(folder: Path, count: int) -> str:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return str(folder)


def test_a_tower_needs_images_not_captions(clip: Path, tmp_path: Path) -> None:
    """From a folder of pictures: trained, compared with its teacher, reported, loaded by open_clip."""
    train, test = (folder_of_pictures(tmp_path / name, count) for name, count in (("train", 9), ("test", 5)))
    data = {"name": "pictures", "train": train, "test": test}
    recipe = recipe_of(clip, tmp_path / "run", task=dict(name="image_text", data=data, captions=False))
    results = run_quietly(recipe)
    cosine = results["agreement"]["image_cosine"]
    assert results["agreement"].keys() == {"image_cosine"} and -1 <= cosine <= 1
    saved = read_results(tmp_path / "run/results.json")
    assert [metric["key"] for metric in saved["metrics"]] == ["image_cosine"]

    student, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'run/student'}")
    teacher, _, _ = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    images = torch.stack([transform(Image.open(path)) for path in sorted(Path(test).iterdir())])
    with torch.no_grad():
        made_of = [model.eval().encode_image(images, normalize=True) for model in (student, teacher)]
    assert cosine == pytest.approx((made_of[0] * made_of[1]).sum(-1).mean().item(), abs=1e-5)

    page = write_report(tmp_path / "run").read_text()
    assert "image embedding cosine" in page and f"{cosine:.4f}" in page
    assert "Student and teacher are least alike" in page
    card = (tmp_path / "run/student/README.md").read_text()
    assert f"| image embedding cosine | – | {cosine:.4f} |" in card

    with pytest.raises(UserError, match="no training picture has a caption"):
        run_quietly(recipe_of(clip, tmp_path / "other", task=dict(name="image_text", data=data)))


def test_everything_is_measured_at_the_end_alone(clip: Path, tmp_path: Path) -> None:
    sets = dict(zero_shot=[{"data": CLASSES}, {"data": CLASSES, "name": "again"}], probe=CLASSES)
    task = dict(name="image_text", data=SCENES, validation=0.3, final_split="test", **sets)
    results = run_quietly(recipe_of(clip, tmp_path / "run", task=task))
    for key in ("mean_recall", "zero_shot_top1", "zero_shot_again_top1", "probe_top1"):
        assert key in results["student"] and key in results["teacher"]
    watched = {key for row in metrics_rows(tmp_path / "run") for key in row if key.startswith("eval/")}
    assert "eval/mean_recall" in watched and not any("zero_shot" in key or "probe" in key for key in watched)
    page = write_report(tmp_path / "run").read_text()
    assert "zero-shot again top-1 %" in page and "linear probe top-1 %" in page


def test_a_stored_teacher_teaches_pairs_alike(clip: Path, tmp_path: Path) -> None:
    """The same losses to the last bit, epoch after epoch."""
    stages = [
        dict(
            name="distill",
            losses=[dict(name="embedding_cosine", tower="image"), dict(name="affinity")],
            steps=6,
            lr=1e-3,
        )
    ]
    live = recipe_of(clip, tmp_path / "live", stages=stages, seed=3)
    kept = dict(
        name="stored",
        teacher=dict(name="open_clip", model=str(clip)),
        folder=str(tmp_path / "store"),
        views=3,
        seed=3,
    )
    run_quietly(live)
    run_quietly(recipe_of(clip, tmp_path / "stored", stages=stages, teacher=kept, seed=3))
    ours, theirs = (metrics_rows(tmp_path / name) for name in ("stored", "live"))
    assert any("loss/affinity" in row for row in ours)
    assert ours == theirs
    assert list((tmp_path / "store").iterdir())


def test_a_clip_is_evaluated_as_its_run_was(clip: Path, tmp_path: Path) -> None:
    """What RUN was trained on is what it is measured on."""
    recipe = recipe_of(clip, tmp_path / "run")
    results = run_quietly(recipe)
    found = transmamba.evaluate(tmp_path / "run", recipe.task, teacher=clip)
    assert found["student"]["mean_recall"] == results["student"]["mean_recall"]
    assert json.loads((tmp_path / "run/student/open_clip_config.json").read_text())["model_cfg"]
