"""What a stage of training is told, and how long it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from ..config.load import Part
from ..config.registry import LOSSES
from ..errors import UserError, refuse_all
from .precision import Precision

LENGTHS = ("steps", "epochs", "samples", "tokens", "percent")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stretch of training with its own losses, AdamW and schedule. It has exactly one of steps, epochs,
    samples, tokens and percent.

    losses: what is added up, each with its `weight`
    name: shown in logs and the report
    steps, epochs, samples, tokens: its length in optimizer steps of the global batch, or rounded to such
    percent: its length as a share of the optimizer steps of all stages: 20 beside 800 steps are 200 of 1,000
    trainable: which of the student's groups of parameters, one or a list: `mixers` (the Mamba mixers), `head`
        (the classifier), a tower such as `image`; of a model that is trained as it is, its
        outermost parts (`visual`, `logit_scale` of open_clip); `all`, or `auto`: mixers where every loss is
        teacher-forced, else all. The projections that its losses read are trained in any case
    lr: peak rate, for an optimizer step of the global batch, whatever its size
    rates: of groups of the student's parameters that it trains, what `lr` and `min_lr` are multiplied by:
        `{far: 10}`
    min_lr: the rate at the end
    warmup: share of the stage in which the rate rises from 0
    schedule: what follows: `cosine`, which falls from there to the end; or `wsd` (warm-up, stable, decay),
        which stays until the last part of the stage, so that one stage serves several lengths (arXiv
        2404.06395)
    decay: of wsd, the last share of the stage, in which the rate falls
    decay_shape: of wsd, how it falls: `linear`, or `sqrt`, as 1 minus the root of the share that is done
        (arXiv 2405.18392)
    branches: of wsd, other lengths, in the unit of the stage's own and below it, at which the run also ends:
        RUN/branches has a run of each that leaves this one where its decay begins
    weight_decay: of matrices alone, not of biases, norms and projections
    betas: of AdamW
    clip: largest norm of all gradients together; 0 for none
    token_fraction: share of the tokens that feature losses look at, drawn anew each step
    task: keys of the recipe's task that have other values for this stage's training, each as an override sets
        it: other data, another block. What is measured, and `init`, stay with the recipe's
    """

    losses: tuple[Annotated[Any, Part(LOSSES)], ...]
    name: str = "distill"
    steps: int | None = None
    epochs: float | None = None
    samples: int | None = None
    tokens: int | None = None
    percent: float | None = None
    trainable: str | tuple[str, ...] = "auto"
    lr: float = 5e-4
    rates: dict[str, float] = field(default_factory=dict)
    min_lr: float = 1e-5
    warmup: float = 0.05
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: float = 0.2
    decay_shape: Literal["linear", "sqrt"] = "sqrt"
    branches: tuple[float, ...] = ()
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    token_fraction: float = 1.0
    task: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        problems = [*self._length_problems(), *optimizer_problems(self), *self._schedule_problems()]
        if not self.losses:
            problems.append("losses is empty; name at least one, such as cross_entropy")
        if len(self.groups) != 1 and (alone := {"auto", "all"} & set(self.groups)):
            problems.append(f"trainable names {sorted(alone)[0]} in a list; write it alone, or groups alone")
        if not self.groups:
            problems.append("trainable is empty; name a group, or write auto")
        if not 0 < self.token_fraction <= 1:
            problems.append(f"token_fraction is {self.token_fraction}; write a share above 0, at most 1")
        problems += [
            f"rates.{group} is {rate}; write a number above 0, what lr is multiplied by"
            for group, rate in self.rates.items()
            if not 0 < rate < math.inf
        ]
        for key in ("min_lr", "clip"):
            if not 0 <= getattr(self, key) < math.inf:
                problems.append(f"{key} is {getattr(self, key)}; write 0 or a number above it")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas is {list(self.betas)}; write two numbers from 0 to below 1")
        refuse_all(problems)

    def _length_problems(self) -> list[str]:
        given = {key: getattr(self, key) for key in LENGTHS if getattr(self, key) is not None}
        problems = [
            f"{key} is {value}; write a number above 0" + (" and below 100" * (key == "percent"))
            for key, value in given.items()
            if not 0 < value < math.inf or (key == "percent" and value >= 100)
        ]
        if len(given) != 1:
            shown = ", ".join(given) or "none"
            problems.append(f"give exactly one of {', '.join(LENGTHS)}; given: {shown}")
        return problems

    def _schedule_problems(self) -> list[str]:
        problems = []
        if self.schedule != "wsd":
            given = [key for key in ("decay", "decay_shape", "branches") if getattr(self, key) != _WSD[key]]
            return [f"{key} is given, but schedule is {self.schedule}; write schedule: wsd" for key in given]
        if not 0 < self.decay <= 1 - self.warmup:
            problems.append(f"decay is {self.decay}; write a share above 0, with the warmup 1 at most")
        if self.branches and self.percent is not None:
            problems.append("branches are lengths, but the stage's own is in percent; write steps or another")
        elif wrong := [length for length in self.branches if not 0 < length < (self.length or math.inf)]:
            problems.append(f"branches has {wrong[0]:g}; write lengths above 0 and below {self.length:g}")
        return problems

    @property
    def unit(self) -> str:
        """Of its length."""
        return next((key for key in LENGTHS if getattr(self, key) is not None), LENGTHS[0])

    @property
    def length(self) -> float | None:
        """In its unit."""
        found: float | None = getattr(self, self.unit)
        return found

    def branch(self, length: float) -> Stage:
        """The same stage, of another length in its own unit."""
        value: Any = length if self.unit == "epochs" else int(length)
        return replace(self, branches=(), **{self.unit: value})

    @property
    def groups(self) -> tuple[str, ...]:
        """`trainable` as a list."""
        return (self.trainable,) if isinstance(self.trainable, str) else self.trainable


_WSD = {field.name: field.default for field in fields(Stage)}


def decay_start(stage: Stage, steps: int) -> int:
    """The step of a stage of `steps` steps from which on the rate of wsd falls."""
    return steps - max(1, round(stage.decay * steps))


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How the loop runs.

    global_batch: items of an optimizer step, over all processes
    micro_batch: items of a process at a time; left out: its whole share of the global batch. How many
        micro-batches make a step follows from both
    precision: of autocast: `no` (float32), bf16 or fp16; tf32 is float32 whose products on a GPU read what
        they multiply with 10 bits of mantissa
    workers: processes that load data, beside each training process; 0 loads in it
    log_every: optimizer steps between lines of metrics.jsonl
    eval_every, save_every: optimizer steps between; 0 for the end of a stage alone. With save_every null a
        run is saved only where it is asked to stop: for those of seconds, which may as well begin anew
    eval_batch_size: items at a time of a process
    keep: how many checkpoints stay
    max_skipped: so many steps in a row may have gradients that are not finite, before the run ends
    grad_checkpointing: recompute the student's layers in the backward pass: less memory, more time
    cuda_graphs: record forward and backward once and replay them (one process with a GPU; elsewhere ignored,
        and refused where weights are sharded): several times faster for students too small to fill it
    compile: compile each of the student's layers by itself (torch.compile), of a language model what lies
        between its matrix products: minutes at the start, fewer launches afterwards; on a GPU cuda_graphs,
        where they can be had, save more
    teacher_placement: its blocks `resident` whole on each device, `offloaded` to the host's memory and
        brought over one by one, or `sharded`: a slice on each process, gathered one by one. Read by slices
        too, where it is a folder or repository of safetensors
    """

    global_batch: int = 64
    micro_batch: int | None = None
    precision: Precision = "no"
    workers: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_batch_size: int = 256
    save_every: int | None = 200
    keep: int = 2
    max_skipped: int = 10
    grad_checkpointing: bool = False
    cuda_graphs: bool = False
    compile: bool = False
    teacher_placement: Literal["resident", "offloaded", "sharded"] = "resident"

    def __post_init__(self) -> None:
        problems = []
        if self.cuda_graphs:
            instead = ["precision bf16, tf32 or no"] if self.precision == "fp16" else []
            instead += ["grad_checkpointing false"] if self.grad_checkpointing else []
            instead += ["compile false"] if self.compile else []
            if instead:
                problems.append(f"cuda_graphs is true; write {' and '.join(instead)}, or cuda_graphs false")
        for key in ("global_batch", "micro_batch", "log_every", "eval_batch_size", "keep", "max_skipped"):
            value = getattr(self, key)
            if value is not None and value < 1:
                problems.append(f"{key} is {value}; write a number of at least 1")
        for key in ("workers", "eval_every", "save_every"):
            value = getattr(self, key)
            if value is not None and value < 0:
                problems.append(f"{key} is {value}; write 0 or a number above it")
        refuse_all(problems)

    def division(self, processes: int) -> tuple[int, int]:
        """(items of a micro-batch, micro-batches of a step) of each process.

        Raises UserError where the global batch cannot be divided so.
        """
        micro = self.micro_batch or max(1, self.global_batch // processes)
        share = micro * processes
        if self.global_batch % share:
            near = max(share, round(self.global_batch / share) * share)
            raise UserError(
                f"trainer.global_batch is {self.global_batch}, which {processes} process"
                f"{'es' * (processes > 1)} of {micro} items at a time cannot divide; write {near}, or "
                "another trainer.micro_batch"
            )
        return micro, self.global_batch // share


def optimizer_problems(settings: Any) -> list[str]:
    """What is wrong with a rate, decay or warm-up."""
    problems = []
    if not 0 < settings.lr < math.inf:
        problems.append(f"lr is {settings.lr}; write a number above 0, such as 5e-4")
    if not 0 <= settings.weight_decay < math.inf:
        problems.append(f"weight_decay is {settings.weight_decay}; write 0 or a number above it")
    if not 0 <= settings.warmup <= 1:
        problems.append(f"warmup is {settings.warmup}; write a share of the stage, from 0 to 1")
    return problems


@dataclass(frozen=True)
class Items:
    """What a stage is trained on: how many, and the tokens of each; None where they have none."""

    count: int
    tokens: int | None = None


def stage_steps(stages: Sequence[Stage], items: Sequence[Items], global_batch: int) -> list[int]:
    """Optimizer steps of each stage, at least 1, of `global_batch` of its items a step. Raises UserError for
    a length in tokens where items have none."""
    steps: list[int | None] = []
    for stage, trained in zip(stages, items, strict=True):
        if stage.steps is not None:
            steps.append(stage.steps)
        elif stage.epochs is not None:
            steps.append(max(1, round(stage.epochs * trained.count / global_batch)))
        elif stage.samples is not None:
            steps.append(max(1, round(stage.samples / global_batch)))
        elif stage.tokens is not None:
            if trained.tokens is None:
                raise UserError(
                    f"stage {stage.name}: tokens is {stage.tokens}, but the task has none; write samples"
                )
            steps.append(max(1, round(stage.tokens / (global_batch * trained.tokens))))
        else:
            steps.append(None)
    fixed = sum(count for count in steps if count is not None)
    share = sum(stage.percent or 0 for stage in stages) / 100
    total = fixed / (1 - share)
    return [
        max(1, round(total * (stage.percent or 0) / 100)) if count is None else count
        for stage, count in zip(stages, steps, strict=True)
    ]
