"""Whether a student says what a loss compares, and a batch asks it: known before anything is run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from ..core.points import PointShape
from ..core.tower import Student
from ..errors import UserError
from .signals import Loss

# what else is trained on such targets, as a mistake names it
_INSTEAD = {"classes": "cross_entropy", "tokens": "cross_entropy", "values": "prediction"}
_BESIDE = {"cross_entropy": "kl", "prediction": "teacher_prediction", "contrastive": "embedding_cosine"}
_OF_EMBEDDINGS = "embedding_cosine, contrastive or affinity"


def check_student(name: str, loss: Loss, student: nn.Module) -> None:
    """Raises UserError for a loss over embeddings, or learnt numbers, that the student is known to lack. What
    a student of one's own gives is seen when it is first run."""
    if not loss.embeds:
        return
    if (said := _says(student)) is not None:
        there, instead = said
        raise UserError(
            f"loss {name} compares embeddings, but the student {there} and has none; use {instead}, or a "
            "student that embeds"
        )
    if not hasattr(student, "logit_scale"):
        return
    missing = [number for number in loss.numbers if getattr(student, f"logit_{number}", None) is None]
    if missing:
        raise UserError(
            f"loss {name} reads the number {' and '.join(missing)} of the student's similarities, which have "
            "none, as a CLIP's; use contrastive or affinity, or a model with it, as a SigLIP (of open_clip "
            "model_cfg.init_logit_bias)"
        )


def _says(student: Any) -> tuple[str, str] | None:
    """What it says in the place of embeddings, and losses over that; None where it embeds, or may do so."""
    of_logits = "kl or cross_entropy"
    if classes := getattr(student, "num_classes", None):
        return f"tells {classes} classes apart", of_logits
    if isinstance(getattr(student, "vocabulary", None), int):
        return "predicts words", of_logits
    if isinstance(getattr(student, "points", None), PointShape):
        return "predicts values at points", "teacher_prediction or prediction"
    encodes = all(hasattr(student, f"encode_{tower}") for tower in ("image", "text"))
    return None if encodes or isinstance(student, Student) else ("gives logits", of_logits)


def without_teacher(student: Any) -> str:
    """A loss that such a student can be trained by alone."""
    if isinstance(getattr(student, "points", None), PointShape):
        return _INSTEAD["values"]
    return "contrastive" if hasattr(student, "encode_text") else _INSTEAD["classes"]


def of_outputs(student: Any) -> str:
    """Losses over what such a student says at its end, as a mistake names them."""
    alone = without_teacher(student)
    return f"{alone}, or {_BESIDE[alone]} where there is a teacher"


def check_targets(name: str, loss: Loss, targets: Collection[str]) -> None:
    """Raises UserError for a loss that reads none of a batch's targets."""
    if not loss.targets or not set(loss.targets).isdisjoint(targets):
        return
    instead = dict.fromkeys(_INSTEAD[target] for target in targets if target in _INSTEAD)
    raise UserError(
        f"loss {name} reads the targets {' or '.join(loss.targets)}, but batches have "
        f"{', '.join(targets) or 'none'}; write {' or '.join(instead) or _OF_EMBEDDINGS} in its place"
    )
