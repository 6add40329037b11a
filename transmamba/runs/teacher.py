"""A recipe's teacher, where its trainer wants it."""

from __future__ import annotations

import logging
from typing import Any

from ..ecosystems.slices import NotByName
from ..ecosystems.sources import read_source
from ..errors import UserError
from ..teachers.auto import Auto
from ..teachers.kinds import check_kind
from ..teachers.load import part_reading
from ..teachers.of_module import OfModule
from ..teachers.sliced import load_sharded
from ..teachers.teacher import Teacher
from ..training.stage import TrainerConfig

logger = logging.getLogger("transmamba.teacher")


def build_teacher(part: Any, trainer: TrainerConfig, accelerator: Any) -> Teacher:
    """The teacher on the accelerator's device, offloaded from it or sharded over its processes.

    part: of the recipe. Raises UserError for a placement that this launch cannot have.
    """
    placement, device = trainer.teacher_placement, accelerator.device
    _check(trainer, accelerator)
    check_kind(part)
    if placement == "sharded" and (sliced := _sharded(part, device)) is not None:
        return sliced
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


def _sharded(part: Any, device: Any) -> Teacher | None:
    """Read by slices; None, said in a line, where it has to be read whole."""
    if isinstance(part, Auto):
        part = part_reading(read_source(part.model, part.architecture))[1]
    changed = getattr(part, "kwargs", None) or not getattr(part, "pretrained", True)
    if not isinstance(part, OfModule) or changed:
        return None  # a module that its checkpoint alone does not describe
    source = read_source(part.model, getattr(part, "architecture", None), getattr(part, "revision", None))
    try:
        return load_sharded(part, source, device)
    except NotByName as error:
        logger.warning("%s: it is read whole by each process before it is sharded", error)
        return None
