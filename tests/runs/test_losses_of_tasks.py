"""Every loss in a recipe of every task: it takes a step that trains something, or is refused before one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import TEACHER, tiny_batch, tiny_recipe, tiny_student
from small_language import llama_folder, texts_file
from small_llava import llava_folder
from tiny_clip import IMAGE, TEXT, made

from transmamba.config import load as configs
from transmamba.config.registry import LOSSES, STUDENTS
from transmamba.core.batch import Batch
from transmamba.core.points import PointShape
from transmamba.core.task import Steps
from transmamba.core.tower import StudentSpec
from transmamba.distillation.distiller import Distiller
from transmamba.ecosystems.find import save_model
from transmamba.errors import UserError
from transmamba.runs.build import assemble, make_accelerator
from transmamba.runs.recipe import Recipe
from transmamba.runs.run import run
from transmamba.training.optimizer import check_stage
from transmamba.training.stage import Stage

SCENES = dict(name="scenes", side=16, count_train=12, count_test=4)
CLASSES = dict(name="synthetic", num_train=12, num_test=6, num_classes=3, size=8)
MIXED = dict(name="sequence", architecture="mambaformer", mixer="mamba2")
HYBRID = dict(name="hybrid_lm", attention_layers=[0])
VISION = dict(
    image_size=16,
    patch_size=8,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
)


def recipe_of(folder: Path, **values: Any) -> Recipe:
    stages = [dict(losses=["cross_entropy"], steps=2, lr=1e-3)]
    trainer = dict(global_batch=4, micro_batch=2)
    values = dict(output_dir=str(folder / "run"), stages=stages, trainer=trainer) | values
    return configs.parse(Recipe, values, "tiny")


def points(function: str = "linear") -> dict[str, Any]:
    return dict(name="in_context", function=dict(name=function, d=4, points=4), prompts=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With teachers of all kinds."""
    pytest.importorskip("open_clip", reason="needs open_clip")
    where = tmp_path_factory.mktemp("every")
    save_model(made(), where / "clip")
    llama_folder(where / "llama", context=256)
    llava_folder(where / "llava")
    texts_file(where / "texts.jsonl")
    spec = StudentSpec(points=PointShape(width=4, outputs=1, length=8))
    options = dict(architecture="transformer", layers=2, width=16, heads=2)
    save_model(STUDENTS["sequence"](**options).build(spec), where / "points")
    return where


def taught(where: Path, name: str, model: str) -> dict[str, Any]:
    return dict(teacher=dict(name=name, model=str(where / model)))


def language(where: Path) -> dict[str, Any]:
    texts = str(where / "texts.jsonl")
    data = dict(name="text", train=texts, test=texts)
    return dict(name="language", data=data, block=16, cache=str(where / "tokens"))


def questions(**options: Any) -> dict[str, Any]:
    data = dict(SCENES, types=["exist", "count"])
    return dict(name="questions", data=data, answer_tokens=3, **options)


RECIPES: dict[str, Callable[[Path], Recipe]] = {
    "classes, taught": lambda where: tiny_recipe(where / "classes"),
    "classes": lambda where: recipe_of(
        where,
        task=dict(name="image_classification", data=CLASSES),
        student=dict(name="timm", model="vit_tiny_patch16_224", kwargs=TEACHER),
    ),
    "pairs, taught": lambda where: recipe_of(
        where,
        task=dict(name="image_text", data=SCENES),
        student=dict(name="clip", image=dict(kind="ssd_vit"), text=dict(kind="mamba2")),
        **taught(where, "open_clip", "clip"),
    ),
    "pictures, taught": lambda where: recipe_of(
        where,
        task=dict(name="image_text", data=SCENES, captions=False),
        student=dict(name="clip"),
        **taught(where, "open_clip", "clip"),
    ),
    "pairs": lambda where: recipe_of(
        where,
        task=dict(name="image_text", data=SCENES),
        student=dict(name="open_clip", model_cfg=dict(embed_dim=8, vision_cfg=IMAGE, text_cfg=TEXT)),
        init=None,
    ),
    "texts, taught": lambda where: recipe_of(
        where,
        task=language(where),
        student=dict(HYBRID, experts=dict(count=2)),
        **taught(where, "causal_lm", "llama"),
    ),
    "texts": lambda where: recipe_of(
        where, task=language(where), student=dict(name="moe_mamba", experts=2, blocks=1, width=16)
    ),
    "questions, taught": lambda where: recipe_of(
        where,
        task=questions(),
        student=dict(name="llava", image=dict(kind="ssd_vit"), decoder=dict(kind="hybrid")),
        **taught(where, "llava", "llava"),
    ),
    "questions": lambda where: recipe_of(
        where,
        task=questions(),
        student=dict(name="hf_llava", vision=VISION, decoder=str(where / "llama")),
        init=None,
    ),
    "points, taught": lambda where: recipe_of(
        where, task=points(), student=MIXED, **taught(where, "auto", "points")
    ),
    "signs": lambda where: recipe_of(
        where, task=points("sparse_parity"), student=dict(MIXED, layers=1, width=16, heads=2)
    ),
}
# what at least can be trained on there
THERE = {
    "classes": {"cross_entropy"},
    "pairs": {"contrastive"},
    "texts": {"cross_entropy", "balance", "router_z"},
    "questions": {"cross_entropy"},
    "points": {"prediction", "teacher_prediction"},
    "signs": {"prediction"},
}
FEATURES = {"mixer", "feature", "bidirectional"}


@pytest.mark.parametrize("which", RECIPES)
def test_a_loss_trains_or_is_refused_before_the_first_step(which: str, folder: Path) -> None:
    recipe = RECIPES[which](folder)
    parts = assemble(recipe, make_accelerator(recipe), quiet=True)
    task: Any = parts.tasks[0]
    batch = task.change(next(iter(task.train_batches(Steps(micro_batch=2, num_steps=1)))), 0)
    assert set(task.inputs) <= batch.inputs.keys() and set(task.targets) <= batch.targets.keys()
    trained = set()
    for name in sorted(LOSSES):
        try:
            distiller = Distiller(parts.student, parts.teacher, (name,))
            check_stage(distiller, Stage(losses=(LOSSES[name](),), steps=1), task.inputs, task.targets)
        except UserError as error:
            assert name in str(error) and "\n" not in str(error)
            continue
        total, _ = distiller.loss(batch)
        total.backward()
        grads = [p.grad for p in parts.student.parameters() if p.grad is not None]
        assert torch.isfinite(total) and any(grad.abs().sum() > 0 for grad in grads), name
        parts.student.zero_grad()
        trained.add(name)
    kind, _, by = which.partition(", ")
    assert trained >= THERE.get(kind, set()) | (FEATURES if by else set())


@pytest.mark.parametrize(
    ("which", "loss", "message"),
    [
        ("signs", "cross_entropy", "have values, asked; write prediction in its place"),
        ("classes", "prediction", "have classes; write cross_entropy in its place"),
        ("pairs", "prediction", "have group; write embedding_cosine, contrastive or affinity"),
        ("pairs", "sigmoid", r"reads the number bias .*; use contrastive or affinity, or a model with it"),
        ("texts", "contrastive", "the student predicts words and has none; use kl or cross_entropy"),
        ("points, taught", "kl", "tells none apart, nor the student; write teacher_prediction"),
    ],
)
def test_a_run_says_so_and_trains_nothing(which: str, loss: str, message: str, folder: Path) -> None:
    values = configs.dump(RECIPES[which](folder))
    values |= dict(output_dir=str(folder / f"{which} {loss}"), stages=[dict(losses=[loss], steps=1, lr=1e-3)])
    with pytest.raises(UserError, match=f"loss {loss} .*{message}"):
        run(configs.parse(Recipe, values, "tiny"), quiet=True)
    assert not list(folder.glob(f"{which} {loss}/checkpoints/*"))
    rows = folder / f"{which} {loss}" / "metrics.jsonl"
    assert not rows.exists() or "loss/" not in rows.read_text()


def test_the_baseline_s_losses_are_looked_at_before_the_run(folder: Path) -> None:
    """It is trained last."""
    values = configs.dump(RECIPES["points, taught"](folder))
    values |= dict(output_dir=str(folder / "baseline"), scratch={}, stages=[dict(losses=["mixer"], steps=1)])
    with pytest.raises(UserError, match=r"stage scratch: loss cross_entropy .* write prediction"):
        run(configs.parse(Recipe, values, "tiny"), quiet=True)
    assert not list(folder.glob("baseline/checkpoints/*"))


@pytest.mark.parametrize(
    ("which", "loss", "instead"),
    [
        ("signs", "teacher_prediction", "give one, or use prediction alone"),
        ("signs", "mixer", "without them use prediction, or teacher_prediction where"),
        ("pairs", "affinity", "give one, or use contrastive alone"),
        ("texts", "kl", "give one, or use cross_entropy alone"),
    ],
)
def test_what_is_named_in_the_place_of_a_teacher_s_can_be_trained_on(
    which: str, loss: str, instead: str, folder: Path
) -> None:
    recipe = RECIPES[which](folder)
    student = assemble(recipe, make_accelerator(recipe), quiet=True).student
    with pytest.raises(UserError, match=f"{loss} need.*; {instead}"):
        Distiller(student, None, (loss,))


def test_in_a_loop_of_ones_own_a_batch_without_targets_is_refused() -> None:
    batch = tiny_batch(2)
    distiller = Distiller(tiny_student(), None, ("cross_entropy",))
    with pytest.raises(UserError, match="reads the targets tokens or classes, but batches have none"):
        distiller.loss(Batch(batch.inputs, {}, batch.index, batch.counts))
