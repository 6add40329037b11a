"""The CLIP miniature: a teacher is trained, becomes Mamba, and open_clip alone finds what the run found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transmamba
from transmamba.config import load as configs
from transmamba.data.scenes import Scenes
from transmamba.runs.run import load_recipe

open_clip = pytest.importorskip("open_clip", reason="needs open_clip")

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"
SIDE, TESTED = 32, 128
# with these and as many steps as below, a student that takes no weights over reaches half of its teacher
FEWER = ("task.data.count_train=1000", "task.data.captions_train=3", "trainer.global_batch=48")


def ran(folder: Path, *overrides: str, taught: Sequence[str] = ()) -> dict[str, Any]:
    """The miniature in a folder of its own, and its teacher's recipe, with overrides `taught`, beside it."""
    teacher = folder / "teacher"
    teaching = load_recipe(CONFIGS / "clip_debug_vit.yaml", [f"output_dir={teacher}", *taught])
    configs.save_yaml(teaching, folder / "teacher.yaml")
    recipe = load_recipe(
        CONFIGS / "clip_debug.yaml",
        [
            f"output_dir={folder / 'run'}",
            f"teacher.model={teacher}",
            f"teacher_recipe={folder / 'teacher.yaml'}",
            *overrides,
        ],
    )
    return transmamba.distill(recipe)


def recalls(folder: Path) -> dict[str, float]:
    """R@1 and R@5 both ways in percent, by open_clip and numpy alone: ranks by a loop."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    scenes = Scenes(split="test", count=TESTED, side=SIDE)
    from PIL import Image

    pictures = torch.stack([transform(Image.fromarray(scenes.picture(i))) for i in range(TESTED)])
    texts = tokenizer([scenes.caption(i) for i in range(TESTED)])
    with torch.no_grad():
        image = model.eval().encode_image(pictures, normalize=True).double().numpy()
        text = model.encode_text(texts, normalize=True).double().numpy()
    found = {}
    for way, queries, gallery in (("i2t", image, text), ("t2i", text, image)):
        cosines = queries @ gallery.T
        ranks = np.array([np.sum(row > row[n]) for n, row in enumerate(cosines)])
        found |= {f"{way}_r{k}": 100 * float(np.mean(ranks < k)) for k in (1, 5)}
    return found


def test_a_clip_becomes_mamba(tmp_path: Path) -> None:
    """Shorter than the recipe as it stands: a teacher that has begun to learn is enough to be followed."""
    results = ran(
        tmp_path, *FEWER, "stages.0.steps=10", "stages.1.steps=40", taught=[*FEWER, "stages.0.steps=60"]
    )
    teacher, student = results["teacher"]["mean_recall"], results["student"]["mean_recall"]
    apart = results["difference"]["mean_recall"]
    assert apart["items"] == TESTED and apart["ratio"] == pytest.approx(student / teacher)
    assert apart["low"] <= student - teacher <= apart["high"] and apart["low"] < apart["high"]
    chance = 100 * (1 + 5 + 10) / 3 / TESTED
    assert teacher > 4 * chance, "the teacher has learnt what captions say"
    assert student > 0.8 * teacher, (student, teacher)
    # near ties may stand in another order in another batch size
    for key, value in recalls(tmp_path / "run" / "student").items():
        assert value == pytest.approx(results["student"][key], abs=1.6), key


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_miniature_in_full(tmp_path: Path) -> None:
    """As it stands, from pictures alone too, and ahead of the same student from random weights."""
    whole = ran(tmp_path)
    teacher = whole["teacher"]["mean_recall"]
    assert whole["student"]["mean_recall"] > 0.9 * teacher
    pictures = ran(
        tmp_path,
        f"output_dir={tmp_path / 'pictures'}",
        "teacher_recipe=null",
        "task.captions=false",
        "student.text.kind=kept",
        "stages.1={losses: [{name: embedding_cosine, tower: image}]}",
    )
    assert pictures["student"]["mean_recall"] > 0.9 * teacher
    scratch = ran(
        tmp_path,
        f"output_dir={tmp_path / 'scratch'}",
        "teacher_recipe=null",
        "init=null",
        "stages.0={losses: [{name: contrastive}], trainable: all}",
        "stages.1={losses: [{name: contrastive}], trainable: all}",
    )
    assert scratch["student"]["mean_recall"] < 0.5 * teacher
