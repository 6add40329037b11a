"""What a recipe names, built: teacher, student and task, which fit each other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from ..core.task import Task
from ..core.tower import StudentSpec
from ..errors import UserError, WrongTeacher
from ..subcloning.convert import carry
from ..teachers.teacher import Teacher
from ..training.precision import autocast_of
from ..training.strategies.choose import DEEPSPEED, asked, strategy_of
from .recipe import Recipe
from .stages import stage_tasks
from .stored import with_store
from .teacher import build_teacher

# what `accelerate launch` can set behind a recipe's back, and what to write instead
_BEHIND = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not supported; use recipes/accelerate/ddp.yaml",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "its parallelism is not supported; use recipes/accelerate/ddp.yaml",
}


@contextlib.contextmanager
def _unasked(variable: str) -> Iterator[None]:
    """Without a variable of the launcher's. Accelerate's own DeepSpeed takes autocast away and steps within
    the backward pass; `training.strategies` drives its engine instead."""
    told = os.environ.pop(variable, None)
    try:
        yield
    finally:
        if told is not None:
            os.environ[variable] = told


@dataclass(frozen=True)
class Parts:
    """A recipe's parts, on the accelerator's device. The teacher is folded where the recipe says so.

    tasks: what each stage is trained on: `task`, or another where the stage's keys say so
    """

    recipe: Recipe
    accelerator: Any
    teacher: Teacher | None
    student: nn.Module
    task: Task
    tasks: Sequence[Task]


def assemble(recipe: Recipe, accelerator: Any, *, quiet: bool = False, stores: bool = True) -> Parts:
    """Build what a recipe names, and write what a stored teacher lacks. Raises UserError for every mismatch
    between its parts.

    stores: or, without, leave a stored teacher's folder alone: its parts are looked at and not trained
    """
    torch.manual_seed(recipe.seed)
    teacher = None
    if recipe.teacher is not None:
        teacher = build_teacher(recipe.teacher, recipe.trainer, accelerator)
    preprocessing = recipe.student.preprocessing() if teacher is None else teacher.preprocessing
    with accelerator.local_main_process_first():  # what it finds out about the files, the others read
        task = recipe.task.build(preprocessing)
        tasks = stage_tasks(recipe, task, teacher, preprocessing)
    if teacher is not None:
        folded = recipe.init is not None and recipe.init.fold
        teacher = with_store(
            teacher, task, recipe.trainer, accelerator, folded=folded, quiet=quiet, writes=stores
        )
        if folded:
            teacher = teacher.fold()  # here and not in subcloning, which a resumed run leaves out
    torch.manual_seed(recipe.seed)
    spec = StudentSpec(
        view=None if teacher is None else teacher.view,
        preprocessing=None if teacher is None else teacher.preprocessing,
        num_classes=task.num_classes,
        points=getattr(task, "points", None),
    )
    try:
        student = recipe.student.build(spec)
    except WrongTeacher as error:
        raise error if teacher is None else error.of(teacher.source) from error
    if teacher is not None:
        carry(student, teacher)
    _check_points(recipe, student, tasks)
    if recipe.adapter is not None:
        torch.manual_seed(recipe.seed)
        for each in {id(task): task for task in (task, *tasks)}.values():
            each.check(student, "student")  # which is there, and says classes or words of its own
        recipe.adapter.put_on(student, getattr(recipe.student, "model", None))
    if recipe.trainer.grad_checkpointing:
        if not hasattr(student, "set_grad_checkpointing"):
            raise UserError("trainer.grad_checkpointing: this student cannot; set it to false")
        student.set_grad_checkpointing(True)
    return Parts(recipe, accelerator, teacher, student.to(accelerator.device), task, tasks)


def _check_points(recipe: Recipe, student: nn.Module, tasks: Sequence[Task]) -> None:
    """Raises UserError for a stage's points that the student, made for the recipe's, does not read."""
    for number, task in enumerate(tasks):
        if recipe.stages[number].task is None or not hasattr(task, "points"):
            continue
        try:
            task.check(student, "the student")
        except UserError as error:
            raise UserError(f"stages.{number}.task: {error}") from error


def make_accelerator(recipe: Recipe) -> Any:
    """An Accelerator for this recipe's precision and tracking, on whatever `accelerate launch` set up.

    Raises UserError where the launcher asks for what would change the recipe without a word.
    """
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
        InitProcessGroupKwargs,
    )

    for variable, instead in _BEHIND.items():
        if asked(variable):
            raise UserError(f"the launcher set {variable}: {instead}")
    dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if dynamo.lower() != "no":
        raise UserError(
            f"the launcher set ACCELERATE_DYNAMO_BACKEND={dynamo}, which no recipe knows; write no"
        )
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
        # one rank may look through a large data set while the others wait for it
        InitProcessGroupKwargs(timeout=timedelta(hours=2)),
    ]
    with _unasked(DEEPSPEED):
        accelerator = Accelerator(
            mixed_precision=autocast_of(recipe.trainer.precision),
            log_with="wandb" if recipe.wandb is not None else None,
            kwargs_handlers=handlers,
            # ours; by default ACCELERATE_GRADIENT_ACCUMULATION_STEPS would divide every gradient once more
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    _check_together(accelerator)
    strategy_of(accelerator, recipe.trainer)  # what it cannot carry is refused before anything is built
    return accelerator


def _check_together(accelerator: Any) -> None:
    """Raises UserError where each of a launcher's processes thinks itself alone: without GPUs Accelerate
    joins them only where it is told that the CPU is meant."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher started {started} processes, but this machine has no GPU to join them on; write "
            "--config_file recipes/accelerate/cpu.yaml for one process, or ACCELERATE_USE_CPU=true before "
            "the same command for all on the CPU"
        )
