"""What a stage trains, in which groups, and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.tower import Student
from ..distillation.compared import check_targets
from ..distillation.distiller import Distiller
from ..errors import UserError, suggest
from .stage import Stage, decay_start


def learning_rate(stage: Stage, step: int, steps: int) -> float:
    """Linear warm-up over `stage.warmup` of the stage, then a cosine from lr down to min_lr; of wsd lr, until
    it falls to min_lr in the end."""
    warmup = round(stage.warmup * steps)
    if step < warmup:
        return stage.lr * (step + 1) / warmup
    end = min(stage.min_lr, stage.lr)
    if stage.schedule == "wsd":
        begin = decay_start(stage, steps)
        done = max(0, step - begin) / (steps - begin)
        return end + (stage.lr - end) * (1 - (done if stage.decay_shape == "linear" else math.sqrt(done)))
    position = (step - warmup) / max(1, steps - warmup)
    return end + (stage.lr - end) * 0.5 * (1 + math.cos(math.pi * position))


def check_stage(
    distiller: Distiller,
    stage: Stage,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> None:
    """Raises UserError where the stage's losses cannot train what it names, or read what is not there.

    inputs, targets: those that training batches have; None where nobody says
    """
    if targets is not None:
        _check_targets(distiller, stage, targets)
    if inputs is not None:
        _check_inputs(distiller, stage, inputs)
    names = trained_names(distiller, stage)
    if not names:
        raise UserError(
            f"stage {stage.name}: trainable {stage.trainable!r} names no parameter of the student"
        )
    # of a student that embeds, the head is what embedding losses read
    alone = stage.groups == ("head",) and getattr(distiller.student, "num_classes", None)
    if alone and not all(loss.reads_logits for loss in distiller.losses.values()):
        raise UserError(
            f"stage {stage.name}: trainable head needs losses on the logits alone: cross_entropy, kl"
        )
    _rates(distiller, stage, names)


def _check_targets(distiller: Distiller, stage: Stage, targets: Sequence[str]) -> None:
    """Raises UserError for a loss that reads targets that training batches do not have."""
    losses = dict[str, Any](distiller.losses.items())
    for name, loss in losses.items():
        try:
            check_targets(name, loss, targets)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None


def _check_inputs(distiller: Distiller, stage: Stage, inputs: Sequence[str]) -> None:
    """Raises UserError for a loss over a tower without an input, and for a converted tower that nothing can
    train."""
    there, losses = ", ".join(inputs), dict[str, Any](distiller.losses.items())
    taught = {} if distiller.teacher is None else distiller.teacher.view.towers
    read = {name: tower.embedding.reads for name, tower in taught.items()}
    for name, loss in losses.items():
        missing = [tower for tower in loss.reads if read.get(tower, tower) not in inputs]
        if missing:
            raise UserError(
                f"stage {stage.name}: loss {name} reads {' and '.join(missing)}, but training batches have "
                f"{there} alone; drop the loss, name another stream or tower, or train with captions"
            )
    towers = distiller.student.towers if isinstance(distiller.student, Student) else {}
    idle = [tower for tower in towers if tower in read and read[tower] not in inputs]
    if idle:
        raise UserError(
            f"the student's {' and '.join(idle)} tower is converted, but training batches have {there} "
            "alone, so nothing trains it; keep the teacher's, or train with captions"
        )


def set_trainable(distiller: Distiller, stage: Stage) -> None:
    """Which parameters this stage trains. The rest gets no gradient, so that DDP never waits for one."""
    trained = trained_names(distiller, stage)
    for name, parameter in distiller.student.named_parameters():
        parameter.requires_grad_(name in trained)
    used = distiller.used_projections()
    aligners: Any = distiller.aligners
    for stream, aligner in aligners.items():
        for k, projection in aligner.projections.items():
            projection.requires_grad_((stream, int(k)) in used)


def trained_names(distiller: Distiller, stage: Stage) -> set[str]:
    """The student's parameters in the groups that a stage names. Raises UserError for one that it lacks."""
    student = distiller.student
    names, scales = {name for name, _ in student.named_parameters()}, _scales(student)
    if scales is not None:
        return set(scales)
    chosen = stage.groups
    if chosen == ("auto",):
        chosen = ("mixers",) if distiller.teacher_forced else ("all",)
    if chosen == ("all",):
        return names
    tests = [_group(student, stage, f"trainable {group!r}", group, ("all", "auto")) for group in chosen]
    return {name for name in names if any(test(name) for test in tests)}


def _group(
    student: nn.Module, stage: Stage, what: str, group: str, beside: Sequence[str] = ()
) -> Callable[[str], bool]:
    groups = groups_of(student)
    if group not in groups:
        raise UserError(
            f"stage {stage.name}: {what} is no group of this student{suggest(group, [*groups, *beside])}"
        )
    return groups[group]


def _rates(distiller: Distiller, stage: Stage, trained: Collection[str]) -> dict[str, float]:
    """What the rates of single parameters are multiplied by, by the student's names of them. Raises UserError
    for a group that the stage does not train, and for parameters that two groups claim."""
    found: dict[str, tuple[str, float]] = {}
    for group, rate in stage.rates.items():
        belongs = _group(distiller.student, stage, f"rates.{group}", group)
        mine = [name for name in trained if belongs(name)]
        if not mine:
            raise UserError(
                f"stage {stage.name}: rates.{group} is {rate}, but the stage trains nothing of this group; "
                "leave it out, or name the group in trainable"
            )
        for name in mine:
            if name in found:
                raise UserError(
                    f"stage {stage.name}: rates names {found[name][0]} and {group}, and {name} is of both; "
                    "name one of them"
                )
            found[name] = group, rate
    return {name: rate for name, (_, rate) in found.items()}


def groups_of(student: nn.Module) -> Mapping[str, Callable[[str], bool]]:
    """The groups of parameters that a student names; of any other model, its outermost modules and parameters
    by their names, and its head by timm's."""
    if isinstance(student, Student):
        return student.groups()
    outermost = {name.partition(".")[0] for name, _ in student.named_parameters()}
    named = {part: partial(_lies_in, part) for part in sorted(outermost)}
    classifier = getattr(student, "get_classifier", None)
    if classifier is None:
        return named
    found: Any = classifier()
    heads = found if isinstance(found, tuple) else (found,)  # a distilled DeiT has two
    own = {id(parameter) for module in heads for parameter in module.parameters()}
    names = {name for name, parameter in student.named_parameters() if id(parameter) in own}
    return {**named, "head": names.__contains__}


def _lies_in(part: str, name: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def set_training(distiller: Distiller, stage: Stage) -> None:
    """Training mode; in a part that is not trained, such as a locked text tower or all below a head that is
    trained alone, nothing is dropped and no statistics move."""
    distiller.train()
    if stage.groups == ("head",):
        distiller.student.eval()
    for part in distiller.student.modules():
        parameters = list(part.parameters())
        if part.training and parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def set_pace(optimizer: Any, student: Any, stage: Stage, step: int, steps: int) -> None:
    """The rate of a step of a stage; a student that has a schedule of its own (`set_progress`) is told how
    much of the stage is done, from 0 to below 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(stage, step, steps) * group.get("rate", 1.0)
    if hasattr(student, "set_progress"):
        student.set_progress(step / steps)


def compile_layers(student: Any) -> None:
    """Each of its units by itself, in place: names and weights stay as they are. A model without units, such
    as any classifier of timm, as a whole; one that knows better what pays does it itself (`compile_`)."""
    if hasattr(student, "compile_"):
        student.compile_()
        return
    for unit in student.units() if hasattr(student, "units") else [student]:
        unit.compile()


def make_optimizer(distiller: Distiller, stage: Stage) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; on a GPU in one kernel, for the steps of small students wait for its
    launches."""
    groups = parameter_groups(distiller, stage)
    fused = all(p.device.type == "cuda" for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=stage.lr, betas=stage.betas, fused=fused or None)


def _exempt(student: nn.Module) -> set[str]:
    """What the student and its modules say has no weight decay: open_clip's model does not ask a tower of
    timm's."""
    found: set[str] = set()
    for name, module in student.named_modules():
        own: Any = getattr(module, "no_weight_decay", None)
        if own is not None:
            found |= {f"{name}.{each}".lstrip(".") for each in own()}
    return found


def parameter_groups(distiller: Distiller, stage: Stage) -> list[dict[str, Any]]:
    """Two groups: with and without weight decay; and one of each rate that the stage's `rates` name, or of
    each rate and decay that an adapter's methods ask for (`rate` multiplies the stage's). Projections begin
    as the embedding of the student's coordinates into the teacher's, from which decay would pull them to 0:
    they have none."""
    student = distiller.student
    exempt, scales = _exempt(student), _scales(student) or {}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    rates = _rates(distiller, stage, trained_names(distiller, stage))
    for name, parameter in distiller.named_parameters():
        if parameter.requires_grad:
            own = name.removeprefix("student.")
            decays = parameter.ndim > 1 and own not in exempt and not name.startswith("aligners.")
            rate, decay = scales.get(own) or (rates.get(own, 1.0), float(decays))
            groups.setdefault((decay > 0, rate, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": stage.weight_decay * decay, "rate": rate}
        for (_, rate, decay), parameters in groups.items()
    ]


def _scales(student: nn.Module) -> Mapping[str, tuple[float, float] | None] | None:
    """Of a student with an adapter, what is trained: by name what rate and weight decay are multiplied by,
    None for what is trained whole."""
    tuned = getattr(student, "tuned", None)
    return None if tuned is None else tuned.scales
