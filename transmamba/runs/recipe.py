"""The recipe: everything a run is told, as frozen dataclasses. Derived values live on the built objects."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..config.load import Part
from ..config.registry import LOSSES, STUDENTS, TASKS, TEACHERS
from ..losses.cross_entropy import CrossEntropy
from ..reporting.tracking import WandbConfig
from ..subcloning.subclone import SubcloneConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training with its own losses, AdamW and schedule. It has exactly one of steps, epochs,
    samples and percent.

    losses: what is added up, each with its `weight`
    name: shown in logs and the report
    steps, epochs, samples: its length in optimizer steps of the global batch, or rounded to such
    percent: its length as a share of the optimizer steps of all stages: 20 beside 800 steps are 200 of 1,000
    trainable: `mixers` (the Mamba mixers and the projections), `head` (the classifier alone), `all`, or
        `auto`: mixers where every loss is teacher-forced, else all
    lr: peak rate, for an optimizer step of the global batch, whatever its size
    min_lr: the rate at the end of the cosine
    warmup: share of the stage in which the rate rises from 0
    weight_decay: of matrices alone, not of biases and norms
    betas: of AdamW
    clip: largest norm of all gradients together; 0 for none
    token_fraction: share of the tokens that feature losses look at, drawn anew each step
    """

    losses: tuple[Annotated[Any, Part(LOSSES)], ...]
    name: str = "distill"
    steps: int | None = None
    epochs: float | None = None
    samples: int | None = None
    percent: float | None = None
    trainable: Literal["auto", "all", "mixers", "head"] = "auto"
    lr: float = 5e-4
    min_lr: float = 1e-5
    warmup: float = 0.05
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    token_fraction: float = 1.0

    def __post_init__(self) -> None:
        lengths = {key: getattr(self, key) for key in ("steps", "epochs", "samples", "percent")}
        given = {key: value for key, value in lengths.items() if value is not None}
        if len(given) != 1:
            shown = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of steps, epochs, samples, percent; given: {shown}")
        key, value = next(iter(given.items()))
        if value <= 0 or (key == "percent" and value >= 100):
            raise ValueError(
                f"{key} is {value}; write a number above 0" + (" and below 100" * (key == "percent"))
            )
        if not self.losses:
            raise ValueError("losses is empty; name at least one, such as cross_entropy")
        if not 0 < self.token_fraction <= 1:
            raise ValueError(f"token_fraction is {self.token_fraction}; write a share above 0, at most 1")
        if self.trainable == "head" and not all(getattr(loss, "uses_logits", False) for loss in self.losses):
            raise ValueError("trainable head needs losses on the logits alone: cross_entropy, kl")
        check_optimizer(self)
        for key in ("min_lr", "clip"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key} is {getattr(self, key)}; write 0 or a number above it")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}; write two numbers from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How the loop runs. A step takes batch_size * accumulation * processes images.

    batch_size: images of a process and micro-batch
    accumulation: micro-batches of an optimizer step
    precision: of autocast: `no` (float32), bf16 or fp16
    workers: processes that load images, beside each training process; 0 loads in it
    log_every: optimizer steps between lines of metrics.jsonl
    eval_every, save_every: optimizer steps between; 0 for the end of a stage alone
    eval_batch_size: images at a time of a process
    keep: how many checkpoints stay
    max_skipped: so many steps in a row may have gradients that are not finite, before the run ends
    grad_checkpointing: recompute the student's layers in the backward pass: less memory, more time
    cuda_graphs: record forward and backward once and replay them (one process with a GPU; elsewhere ignored):
        several times faster for students too small to fill it
    """

    batch_size: int = 64
    accumulation: int = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    workers: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_batch_size: int = 256
    save_every: int = 200
    keep: int = 2
    max_skipped: int = 10
    grad_checkpointing: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.cuda_graphs:
            instead = ["precision bf16 or no"] if self.precision == "fp16" else []
            instead += ["grad_checkpointing false"] if self.grad_checkpointing else []
            if instead:
                raise ValueError(f"cuda_graphs is true; write {' and '.join(instead)}, or cuda_graphs false")
        for key in ("batch_size", "accumulation", "log_every", "eval_batch_size", "keep", "max_skipped"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; write a number of at least 1")
        for key in ("workers", "eval_every", "save_every"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} is {getattr(self, key)}; write 0 or a number above it")


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
        check_optimizer(self)


def check_optimizer(settings: Stage | Scratch) -> None:
    """Raises ValueError for a rate, decay or warm-up that no schedule can use."""
    if not 0 < settings.lr < math.inf:
        raise ValueError(f"lr is {settings.lr}; write a number above 0, such as 5e-4")
    if not 0 <= settings.weight_decay < math.inf:
        raise ValueError(f"weight_decay is {settings.weight_decay}; write 0 or a number above it")
    if not 0 <= settings.warmup <= 1:
        raise ValueError(f"warmup is {settings.warmup}; write a share of the stage, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """teacher -> student -> init -> stages -> RUN (output_dir). Without a teacher: training from labels
    alone.

    output_dir: the run's folder: checkpoints, metrics, report, and the student
    task: what is learnt, on which data
    student: what is trained
    stages: one after the other, a list
    teacher: whom it learns from
    init: how the student starts; null: from random weights
    trainer: how the loop runs
    wandb: also tracked there
    seed: of everything that is drawn, but for what has a seed of its own
    teacher_recipe: path of a recipe whose run makes the teacher; run first where its results are missing
    scratch: also train the same student from labels alone, for comparison
    """

    output_dir: str
    task: Annotated[Any, Part(TASKS)]
    student: Annotated[Any, Part(STUDENTS)]
    stages: tuple[Stage, ...]
    teacher: Annotated[Any, Part(TEACHERS)] | None = None
    teacher_recipe: str | None = None
    init: SubcloneConfig | None = field(default_factory=SubcloneConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    scratch: Scratch | None = None
    wandb: WandbConfig | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages is empty; give at least one")
        if sum(stage.percent or 0 for stage in self.stages) >= 100:
            raise ValueError(
                "the stages' percents reach 100; at least one stage needs steps, epochs or samples"
            )


def stage_steps(stages: tuple[Stage, ...], num_train: int, global_batch: int) -> list[int]:
    """Optimizer steps of each stage, at least 1, for `num_train` images and `global_batch` images a step."""
    steps: list[int | None] = []
    for stage in stages:
        if stage.steps is not None:
            steps.append(stage.steps)
        elif stage.epochs is not None:
            steps.append(max(1, round(stage.epochs * num_train / global_batch)))
        elif stage.samples is not None:
            steps.append(max(1, round(stage.samples / global_batch)))
        else:
            steps.append(None)
    fixed = sum(count for count in steps if count is not None)
    share = sum(stage.percent or 0 for stage in stages) / 100
    total = fixed / (1 - share)
    return [
        max(1, round(total * (stage.percent or 0) / 100)) if count is None else count
        for stage, count in zip(stages, steps, strict=True)
    ]
