"""What a stage trains, in which groups, and how fast."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..distillation.distiller import Distiller
from ..errors import UserError
from ..runs.recipe import Stage


def learning_rate(stage: Stage, step: int, steps: int) -> float:
    """Linear warm-up over `stage.warmup` of the stage, then a cosine from lr down to min_lr."""
    warmup = round(stage.warmup * steps)
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    end = min(stage.min_lr, stage.lr)
    position = (step - warmup) / max(1, steps - warmup)
    return end + (stage.lr - end) * 0.5 * (1 + math.cos(math.pi * position))


def set_trainable(distiller: Distiller, stage: Stage) -> None:
    """Which parameters this stage trains. The rest gets no gradient, so that DDP never waits for one."""
    student = distiller.student
    trained = {name for name, _ in student.named_parameters()}
    if stage.trainable == "mixers" or (stage.trainable == "auto" and distiller.teacher_forced):
        trained = _named(stage, student, "mixer_parameters", "mixers to train alone")()
    elif stage.trainable == "head":
        found = _named(stage, student, "get_classifier", "classifier by timm's name")()
        heads = found if isinstance(found, tuple) else (found,)  # a distilled DeiT has two
        head = {parameter for module in heads for parameter in module.parameters()}
        trained = {name for name, parameter in student.named_parameters() if parameter in head}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in trained)
    if distiller.aligner is not None:
        used = distiller.used_projections()
        for k, projection in distiller.aligner.projections.items():
            projection.requires_grad_(int(k) in used)


def set_training(distiller: Distiller, stage: Stage) -> None:
    """Training mode; below a head that is trained alone nothing is dropped and no statistics move."""
    distiller.train()
    if stage.trainable == "head":
        distiller.student.eval()


def _named(stage: Stage, student: nn.Module, member: str, what: str) -> Any:
    """The student's `member`. Raises UserError where it has none."""
    found = getattr(student, member, None)
    if found is None:
        raise UserError(f"stage {stage.name}: this student has no {what}; use trainable: all")
    return found


def make_optimizer(distiller: Distiller, stage: Stage) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; on a GPU in one kernel, for the steps of small students wait for its
    launches."""
    groups = parameter_groups(distiller, stage)
    fused = all(p.device.type == "cuda" for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, fused=fused or None)


def parameter_groups(distiller: Distiller, stage: Stage) -> list[dict[str, Any]]:
    """Two groups at most: with and without weight decay."""
    student = distiller.student
    exempt = set(student.no_weight_decay()) if hasattr(student, "no_weight_decay") else set()  # type: ignore[operator]
    groups: dict[bool, list[nn.Parameter]] = {}
    for name, parameter in distiller.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name.removeprefix("student.") not in exempt
            groups.setdefault(decays, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": stage.weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
    ]
