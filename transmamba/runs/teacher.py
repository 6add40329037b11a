"""A recipe's teacher, where its trainer wants it."""

from __future__ import annotations

import logging
from typing import Any

from ..config.registry import TEACHERS
from ..ecosystems.slices import Slices
from ..ecosystems.sources import Source, read_source
from ..errors import UserError
from ..teachers.sliced import OtherNames, load_sharded
from ..teachers.teacher import Teacher
from ..training.stage import TrainerConfig

logger = logging.getLogger("transmamba.teacher")


def build_teacher(part: Any, trainer: TrainerConfig, accelerator: Any) -> Teacher:
    """The teacher on the accelerator's device, offloaded from it or sharded over its processes.

    part: of the recipe. Raises UserError for a placement that this launch cannot have.
    """
    placement, device = trainer.teacher_placement, accelerator.device
    _check(trainer, accelerator)
    if placement == "sharded":
        known, source = _by_slices(part)
        if source is not None:
            try:
                return load_sharded(known, source, device)
            except OtherNames as error:
                logger.warning("%s: it is read whole by each process first", error)
    teacher: Teacher = part.build()
    return teacher.to(device) if placement == "resident" else teacher.placed(placement, device)


def _check(trainer: TrainerConfig, accelerator: Any) -> None:
    placement = trainer.teacher_placement
    if placement != "resident" and trainer.cuda_graphs:
        raise UserError(
            f"trainer.cuda_graphs is true, but a recorded step cannot bring a teacher's blocks over "
            f"(teacher_placement {placement}); write trainer.cuda_graphs=false"
        )
    if placement == "sharded" and accelerator.num_processes == 1:
        raise UserError(
            "trainer.teacher_placement is sharded, which takes several processes; launch with "
            "recipes/accelerate/ddp.yaml or fsdp2.yaml, or write offloaded"
        )


def _by_slices(part: Any) -> tuple[Any, Source | None]:
    """The part that reads it, and its files; without files where they cannot be read by slices."""
    if not hasattr(part, "empty") and hasattr(part, "model"):  # `auto`: whoever recognises it
        source = read_source(part.model, getattr(part, "architecture", None))
        for name in TEACHERS:
            found = getattr(TEACHERS[name], "recognise", lambda source: None)(source)
            if found is not None:
                part = found
                break
    if not hasattr(part, "empty") or getattr(part, "kwargs", None) or not getattr(part, "pretrained", True):
        return part, None
    source = read_source(part.model, getattr(part, "architecture", None), getattr(part, "revision", None))
    return part, source if Slices.there(source) else None
