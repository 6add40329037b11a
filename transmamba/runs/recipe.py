"""The recipe: everything a run is told, as frozen dataclasses. Derived values live on the built objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..config import load as configs
from ..config.file import merged
from ..config.load import Part
from ..config.registry import LOSSES, STUDENTS, TASKS, TEACHERS
from ..data.hashing import seed_problems
from ..errors import ConfigError, refuse_all, suggest
from ..losses.cross_entropy import CrossEntropy
from ..reporting.tracking import WandbConfig
from ..subcloning.subclone import SubcloneConfig
from ..training.stage import Stage, TrainerConfig, optimizer_problems
from .adapter import Adapter, problems_of


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """The same student trained from scratch with the same data and steps, for comparison (RUN/scratch).

    losses, lr, weight_decay, warmup: its own, since what suits distillation need not suit it
    """

    losses: tuple[Annotated[Any, Part(LOSSES)], ...] = (CrossEntropy(),)
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05

    def __post_init__(self) -> None:
        problems = optimizer_problems(self)
        if not self.losses:
            problems.append("losses is empty; name at least one, such as cross_entropy")
        refuse_all(problems)

    def stage(self, steps: int) -> Stage:
        """Its only one."""
        return Stage(
            name="scratch",
            losses=self.losses,
            steps=steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """teacher -> student -> init -> stages -> RUN (output_dir). Without a teacher: training from labels
    alone.

    output_dir: the run's folder: checkpoints, metrics, report, and the student
    task: what is learnt, on which data
    student: what is trained
    stages: one after the other, a list
    teacher: whom it learns from
    adapter: what alone is trained of a student that is there: with a teacher it distils into the adapter,
        without one it is fine-tuning
    init: how the student starts; null: from random weights
    trainer: how the loop runs
    wandb: also tracked there
    seed: of everything that is drawn, but for what has a seed of its own
    teacher_recipe: path of a recipe whose run makes the teacher; run first where its results are missing
    scratch: also train the same student from labels alone, for comparison
    leaves: all; or numbers, without student, adapter, checkpoints and report, for one of thousands that are
        compared
    """

    output_dir: str
    task: Annotated[Any, Part(TASKS)]
    student: Annotated[Any, Part(STUDENTS)]
    stages: tuple[Stage, ...]
    teacher: Annotated[Any, Part(TEACHERS)] | None = None
    teacher_recipe: str | None = None
    adapter: Adapter | None = None
    init: SubcloneConfig | None = field(default_factory=SubcloneConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    scratch: Scratch | None = None
    wandb: WandbConfig | None = None
    seed: int = 0
    leaves: Literal["all", "numbers"] = "all"

    def __post_init__(self) -> None:
        problems = seed_problems("seed", self.seed)
        problems += [] if self.stages else ["stages is empty; give at least one"]
        shares = [stage.percent for stage in self.stages]
        if sum(share or 0 for share in shares) >= 100 or (shares and None not in shares):
            problems.append(
                "the stages' percents are shares of a length that none of them gives, or reach 100; at least "
                "one stage needs steps, epochs, samples or tokens"
            )
        if self.init is None or not self.init.layers or self.scratch is not None:
            problems += getattr(self.student, "problems_from_scratch", list)()
        problems += problems_of(self.adapter, self)
        for stage in range(len(self.stages)):
            problems += [*self._task_problems(stage), *self._group_problems(stage)]
        if self.teacher_recipe is not None and self.teacher is None:
            problems.append(
                "teacher_recipe is given, but no teacher; write teacher with its output_dir as "
                "model, or leave teacher_recipe out"
            )
        if self.leaves == "numbers" and (self.scratch is not None or any(s.branches for s in self.stages)):
            problems.append("leaves is numbers, but scratch and branches leave runs of their own; write all")
        refuse_all(problems)

    def task_of(self, stage: int) -> Any:
        """What a stage is trained on: the recipe's task, with the stage's own keys in the place of its.
        Raises ConfigError."""
        changes = self.stages[stage].task
        if changes is None:
            return self.task
        values, _ = merged(configs.dump(self.task), changes, "task")
        values.pop("name", None)  # the class says it
        return configs.parse(type(self.task), values, f"stages.{stage}.task")

    def _group_problems(self, stage: int) -> list[str]:
        """Groups of parameters that no student of this kind has, where its configuration says which there
        are; the others are looked for in the student itself."""
        known = getattr(self.student, "group_names", None)
        if known is None or self.adapter is not None:
            return []
        said, path, every = self.stages[stage], f"stages.{stage}", [*known, "all", "auto"]
        unknown = [
            f"{path}.trainable: {group!r} is no group of this student{suggest(group, every)}"
            for group in said.groups
            if group not in every
        ]
        return unknown + [
            f"{path}.rates.{group}: no group of this student{suggest(group, known)}"
            for group in said.rates
            if group not in known
        ]

    def _task_problems(self, stage: int) -> list[str]:
        changes, path = self.stages[stage].task, f"stages.{stage}.task"
        if changes is None:
            return []
        if not changes or "name" in changes:
            return [f"{path}: {changes}; write keys of the recipe's task, such as block or data"]
        try:
            self.task_of(stage)
        except ConfigError as error:
            return [f"{path}.{problem}" for problem in error.problems]
        return []
