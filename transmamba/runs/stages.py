"""What each stage of a recipe is trained on: the recipe's task, or the same with other data or options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.task import Task
from ..errors import UserError
from ..teachers.stored import StoredTeacher
from ..teachers.teacher import Teacher
from .recipe import Recipe


def stage_tasks(recipe: Recipe, task: Task, teacher: Teacher | None, preprocessing: Any) -> tuple[Task, ...]:
    """The task of each stage, `task` itself where the stage says nothing of it; one for stages that say the
    same. All are opened, and fit the teacher and each other.

    Raises UserError, which names the stage, as tasks do for data that cannot be had.
    """
    if teacher is not None:
        task.check(teacher, "teacher")
    made: list[tuple[Any, Task]] = [(recipe.task, task)]
    for number in range(len(recipe.stages)):
        config = recipe.task_of(number)
        if any(config == known for known, _ in made):
            continue
        try:
            if isinstance(teacher, StoredTeacher):
                raise UserError("a stored teacher's rows are of the recipe's own data; leave it out")
            made.append((config, _opened(config, task, teacher, preprocessing)))
        except UserError as error:
            raise UserError(f"stages.{number}.task: {error}") from error
    configs = [recipe.task_of(number) for number in range(len(recipe.stages))]
    return tuple(next(built for known, built in made if known == config) for config in configs)


def _opened(config: Any, task: Task, teacher: Teacher | None, preprocessing: Any) -> Task:
    """A task to train on, without evaluation splits where it can do without; its training data are there."""
    build = config.build_training if hasattr(config, "build_training") else config.build
    made: Task = build(preprocessing)
    if teacher is not None:
        made.check(teacher, "teacher")
    if made.num_train < 1:
        raise UserError("there is nothing to train on")
    theirs, mine = getattr(task, "classes", None), getattr(made, "classes", None)
    if made.num_classes != task.num_classes or theirs != mine:
        raise UserError(
            f"its data have the {made.num_classes} classes {_first(mine)}, those of the recipe's task "
            f"{task.num_classes}: {_first(theirs)}; choose data with the same classes, in the same order"
        )
    return made


def _first(names: Sequence[str] | None) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "") if names else "without names"


def recordable_of(tasks: Sequence[Task]) -> list[int]:
    """The stages whose task says that its `change` may be recorded."""
    return [number for number, task in enumerate(tasks) if getattr(task, "recordable", False)]


def begins_of(tasks: Sequence[Task], counts: Sequence[int]) -> list[int]:
    """At which step of its own data each stage begins: behind the stages before it that have the same."""
    return [
        sum(count for other, count in zip(tasks[:i], counts, strict=False) if other is task)
        for i, task in enumerate(tasks)
    ]
