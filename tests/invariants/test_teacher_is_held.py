"""Invariant 2: the teacher is held, not owned: trained, saved, exchanged and switched by nobody."""

from __future__ import annotations

import gc
from pathlib import Path

import harness
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from transmamba.config.registry import LOSSES
from transmamba.distillation.distiller import Distiller
from transmamba.training.optimizer import parameter_groups, set_trainable
from transmamba.training.stage import Stage
from transmamba.views.sublayers import map_tensors

LOSS_NAMES = harness.classifier_losses()


@pytest.fixture
def vit() -> torch.nn.Module:
    return harness.tiny_vit()


@pytest.fixture
def distiller(vit: torch.nn.Module) -> Distiller:
    return Distiller(harness.tiny_student(), vit, LOSS_NAMES)


def storages(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def teacher_tensors(distiller: Distiller) -> list[Tensor]:
    assert distiller.teacher is not None
    found: list[Tensor] = []
    map_tensors(distiller.teacher.view, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    assert len(found) > 20
    return found


def test_not_in_the_module(distiller: Distiller, vit: torch.nn.Module) -> None:
    theirs = storages(teacher_tensors(distiller)) | storages(list(vit.parameters()))
    ours = [*distiller.state_dict().values(), *distiller.parameters(), *distiller.buffers()]
    assert not storages(ours) & theirs
    assert not any("teacher" in name for name in distiller.state_dict())
    kinds = {type(module).__name__ for module in distiller.modules()}
    assert "VisionTransformer" not in kinds and vit not in list(distiller.modules())


def test_not_in_the_optimizer(distiller: Distiller) -> None:
    stage = Stage(losses=(LOSSES["kl"](),), steps=1)
    set_trainable(distiller, stage)
    trained = [p for group in parameter_groups(distiller, stage) for p in group["params"]]
    assert trained and not storages(trained) & storages(teacher_tensors(distiller))


def test_always_in_eval_mode(distiller: Distiller, vit: torch.nn.Module) -> None:
    batch = harness.tiny_batch(2)
    distiller.train()
    assert not vit.training
    assert distiller.teacher is not None
    first, again = (distiller.teacher(batch.inputs).logits for _ in range(2))
    assert first is not None and again is not None and torch.equal(first(), again())
    distiller(batch)
    assert not vit.training


def test_a_teacher_with_dropout_that_the_user_left_in_train_mode() -> None:
    """Its dropout does not reach the view: two passes agree, with its own evaluation."""
    import timm

    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, proj_drop_rate=0.5, drop_path_rate=0.5, **harness.TEACHER
    ).train()
    distiller = Distiller(harness.tiny_student(), vit, ("kl",)).train()
    images = harness.tiny_batch(2).inputs["image"]
    assert distiller.teacher is not None
    made = distiller.teacher(images).logits
    assert made is not None
    with torch.no_grad():
        torch.testing.assert_close(made(), vit.eval()(images), rtol=1e-4, atol=1e-5)


def test_no_gradients(distiller: Distiller, vit: torch.nn.Module) -> None:
    before = [tensor.clone() for tensor in teacher_tensors(distiller)]
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1.0)
    for step in range(2):
        total, _ = distiller.loss(harness.tiny_batch(4), step)
        total.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert all(not tensor.requires_grad for tensor in teacher_tensors(distiller))
    assert all(torch.equal(a, b) for a, b in zip(before, teacher_tensors(distiller), strict=True))


def test_not_in_checkpoints(tmp_path: Path) -> None:
    recipe = harness.tiny_recipe(tmp_path)
    harness.finish(harness.start(harness.run_quietly, recipe))
    with safe_open(tmp_path / "teacher/model.safetensors", "pt") as file:
        teacher = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in ("checkpoints/step-00000005", "checkpoints/step-00000013", "student"):
        if not (tmp_path / "run" / name).is_dir():
            continue
        with safe_open(tmp_path / "run" / name / "model.safetensors", "pt") as file:
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        assert not any("teacher" in key for key in saved)
        assert not any(
            a.shape == b.shape and torch.equal(a, b)
            for a in saved.values()
            for b in teacher.values()
            if a.ndim > 1
        )
    optimizer = torch.load(tmp_path / "run/checkpoints/step-00000013/optimizer.bin", weights_only=True)
    count = len(optimizer["param_groups"][0]["params"])
    assert count < len(saved) + 12


def in_ddp() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator()
    distiller = Distiller(harness.tiny_student(), harness.tiny_teacher(), ("kl",))
    before = teacher_tensors(distiller)[3].clone()
    model = accelerator.prepare(distiller)
    assert type(model).__name__ == "DistributedDataParallel"
    assert not storages(list(model.parameters())) & storages(teacher_tensors(distiller))
    assert not any("teacher" in name for name in model.state_dict())
    model(harness.tiny_batch(2, seed=accelerator.process_index))["kl"].sum.backward()
    assert torch.equal(teacher_tensors(distiller)[3], before)
    gc.collect()


def test_not_in_ddp() -> None:
    harness.in_ranks(2, in_ddp)
