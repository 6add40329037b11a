"""What distillation costs: one full step beside the teacher's forward plus an ordinary training step.

All kinds are timed in one process, in turns, so that a busy machine slows them alike.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.output import Term
from ..distillation.distiller import Distiller
from ..ecosystems.folders import model_folder
from ..errors import UserError
from ..runs.pipeline import Pipeline
from ..runs.recipe import Recipe, Stage
from ..runs.run import assemble, make_accelerator
from ..students.student import Student
from ..training.cuda_graph import WARMUP, GraphedStep
from ..training.optimizer import make_optimizer, set_trainable
from ..training.trainer import weighted

_WARMUP = WARMUP + 2  # first as it is, then recorded


def bench_recipe(recipe: Recipe, steps: int = 20) -> dict[str, Any]:
    """Median seconds of: teacher forward; the student's own cross-entropy step; a full distillation step of
    the recipe's last stage, on all tokens and on a quarter of them.

    `overhead` is distillation / (teacher forward + cross-entropy step); `overhead_quarter` the same on a
    quarter.
    """
    if recipe.teacher is None:
        raise UserError(
            "bench recipe compares distillation with plain training; this recipe names no teacher"
        )
    if steps < 1:
        raise UserError(f"--steps is {steps}; write at least 1")
    accelerator = make_accelerator(recipe)
    try:
        pipeline = assemble(recipe, accelerator)
    except UserError as error:
        there = model_folder(getattr(recipe.teacher, "model", "")) is not None
        if recipe.teacher_recipe is None or there:  # then something else is wrong
            raise
        raise UserError(f"{error}; the teacher is made by {recipe.teacher_recipe}: run that first") from error
    assert pipeline.teacher is not None, "the recipe names one"
    batch = next(pipeline._batches(0, 1, len(pipeline.stages) - 1)).to(accelerator.device)
    stage = pipeline.stages[-1][0]
    full = _distillation(pipeline, replace(stage, token_fraction=1.0), batch)
    quarter = _distillation(pipeline, replace(stage, token_fraction=0.25), batch)
    kinds: dict[str, Callable[[], None]] = {
        "teacher_forward": _teacher_forward(pipeline, batch),
        "cross_entropy_step": _cross_entropy(pipeline, batch),
        "distillation_step": full,
        "distillation_step_quarter_tokens": quarter,
    }
    seconds = interleaved(kinds, steps, accelerator.device)
    plain = seconds["teacher_forward"] + seconds["cross_entropy_step"]
    return {
        "seconds": seconds,
        "overhead": seconds["distillation_step"] / plain,
        "overhead_quarter": seconds["distillation_step_quarter_tokens"] / plain,
        "batch_size": len(batch),
        "device": str(accelerator.device),
        "steps": steps,
    }


def bench_table(result: dict[str, Any]) -> str:
    lines = [f"{name:<34} {1e3 * value:10.2f} ms" for name, value in result["seconds"].items()]
    lines.append(f"{'distillation / (teacher + CE step)':<34} {result['overhead']:10.3f}")
    lines.append(f"{'the same on a quarter of the tokens':<34} {result['overhead_quarter']:9.3f}")
    return "\n".join(lines)


def interleaved(kinds: dict[str, Callable[[], None]], steps: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each kind, all of them in turns."""
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for round_ in range(_WARMUP + steps):
        for name, run in kinds.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_ >= _WARMUP:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _teacher_forward(pipeline: Pipeline, batch: Any) -> Callable[[], None]:
    teacher = pipeline.teacher
    assert teacher is not None

    def forward(images: Tensor, _: Any) -> None:
        with pipeline.accelerator.autocast():
            teacher(images)

    run = _recorded(pipeline, forward, nn.Module())
    return lambda: run(batch.images)


def _cross_entropy(pipeline: Pipeline, batch: Any) -> Callable[[], None]:
    """timm's own training step of the same student: forward, cross-entropy, backward, clip, AdamW."""
    student = pipeline.student
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-6, fused=batch.images.is_cuda or None)

    def forward_backward(images: Tensor, targets: Tensor, _: Any) -> None:
        student.train().requires_grad_(True)
        with pipeline.accelerator.autocast():
            loss = F.cross_entropy(student(images), targets)
        loss.backward()

    run = _recorded(pipeline, forward_backward, student)

    def step() -> None:
        run(batch.images, batch.targets)
        _update(student, optimizer)

    return step


def _distillation(pipeline: Pipeline, stage: Stage, batch: Any) -> Callable[[], None]:
    assert pipeline.teacher is not None and isinstance(pipeline.student, Student)
    distiller = Distiller(
        pipeline.student, pipeline.teacher, stage.losses, token_fraction=stage.token_fraction
    )
    distiller.to(pipeline.accelerator.device)
    if any(loss.standardises for loss in distiller.losses.values()):
        assert distiller.aligner is not None, "it holds the statistics"
        distiller.aligner.measure(pipeline.teacher, [batch.images])
    set_trainable(distiller, stage)
    optimizer = make_optimizer(distiller, replace(stage, lr=1e-6))

    def forward_backward(images: Tensor, targets: Tensor, drawn: Tensor | None, _: Any) -> dict[str, Term]:
        distiller.train()
        set_trainable(distiller, stage)
        with pipeline.accelerator.autocast():
            terms = distiller(images, targets, drawn=drawn)
            counts = {name: term.count for name, term in terms.items()}
            loss: Tensor = weighted(terms, distiller.weights, counts)
        loss.backward()
        return {name: term.detached() for name, term in terms.items()}

    run = _recorded(pipeline, forward_backward, distiller)
    steps = itertools.count()

    def step() -> None:
        drawn = distiller.draw_tokens(next(steps), batch.images.device)
        terms = run(batch.images, batch.targets, drawn)
        _update(distiller, optimizer)
        distiller.observe({n: (t.parts / t.count).cpu() for n, t in terms.items() if t.parts is not None})

    return step


def _recorded(pipeline: Pipeline, body: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    if not (pipeline.recipe.trainer.cuda_graphs and pipeline.accelerator.device.type == "cuda"):
        return lambda *inputs: body(*inputs, None)
    return GraphedStep(body, module.parameters())


def _update(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
