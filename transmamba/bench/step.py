"""What distillation costs: a recipe's own step beside the teacher's forward plus an ordinary training step.

All kinds are timed in one process, in turns, so that a busy machine slows them alike.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.batch import Batch, asked
from ..core.output import Logits, wide
from ..core.tower import Student
from ..ecosystems.folders import model_folder
from ..errors import UserError
from ..losses.chunked import CHUNK, chunked
from ..runs.build import Parts, assemble, make_accelerator
from ..runs.pipeline import Pipeline
from ..runs.recipe import Recipe
from ..training.cuda_graph import WARMUP, GraphedStep
from ..training.optimizer import compile_layers, make_optimizer, set_trainable, set_training
from ..training.precision import float32_products
from ..training.step import Stepper
from ..training.strategies import Plain

_WARMUP = WARMUP + 2  # first as it is, then recorded
# the weights are to stay as they are, however long they are stepped
_RATE = 1e-6


def bench_recipe(recipe: Recipe, steps: int = 20) -> dict[str, Any]:
    """Median seconds of: teacher forward; the student's own cross-entropy step; an optimizer step of the
    recipe's last stage as the trainer takes it, on all tokens and on a quarter of them; each of all
    micro-batches of a step.

    `overhead` is distillation / (teacher forward + cross-entropy step); `overhead_quarter` the same on a
    quarter, which rows of text do not have. Of language models logits are made some tokens at a time by every
    kind, and `tokens_per_second` is that of distillation.

    Raises UserError for a recipe without a teacher, and for what `assemble` refuses.
    """
    if recipe.teacher is None:
        raise UserError(
            "bench recipe compares distillation with plain training; this recipe names no teacher"
        )
    if steps < 1:
        raise UserError(f"--steps is {steps}; write at least 1")
    accelerator = make_accelerator(recipe)
    parts = _assembled(recipe, accelerator)
    if recipe.trainer.compile:
        compile_layers(parts.student)
    micro = _step_s_batches(Pipeline(parts))
    kinds: dict[str, Callable[[], object]] = {
        "teacher_forward": _teacher_forward(parts, micro),
        "cross_entropy_step": _cross_entropy(parts, micro),
        "distillation_step": _distillation(parts, 1.0, micro),
    }
    if not _of_words(micro):
        kinds["distillation_step_quarter_tokens"] = _distillation(parts, 0.25, micro)
    with float32_products(recipe.trainer.precision):
        seconds = interleaved(kinds, steps, accelerator.device)
    plain = seconds["teacher_forward"] + seconds["cross_entropy_step"]
    result = {
        "seconds": seconds,
        "overhead": seconds["distillation_step"] / plain,
        "batch_size": sum(map(len, micro)),
        "device": str(accelerator.device),
        "steps": steps,
    }
    if _of_words(micro):
        tokens = sum(batch.counts["tokens"] for batch in micro)
        return {**result, "tokens_per_second": tokens / seconds["distillation_step"]}
    return {**result, "overhead_quarter": seconds["distillation_step_quarter_tokens"] / plain}


def _of_words(micro: Sequence[Batch]) -> bool:
    """Whether what is to be said are the next words of texts."""
    return "tokens" in micro[0].targets


def _asked(micro: Sequence[Batch]) -> list[Tensor | None]:
    """Of each batch of words, which of its tokens have a target."""
    return [asked(batch) if _of_words(micro) else None for batch in micro]


def bench_table(result: dict[str, Any]) -> str:
    lines = [f"{name:<34} {1e3 * value:10.2f} ms" for name, value in result["seconds"].items()]
    lines.append(f"{'distillation / (teacher + CE step)':<34} {result['overhead']:10.3f}")
    if "overhead_quarter" in result:
        lines.append(f"{'the same on a quarter of the tokens':<34} {result['overhead_quarter']:10.3f}")
    if "tokens_per_second" in result:
        lines.append(f"{'distillation, tokens/s':<34} {result['tokens_per_second']:10.0f}")
    return "\n".join(lines)


def interleaved(
    kinds: Mapping[str, Callable[[], object]],
    steps: int,
    device: torch.device,
    *,
    warmup: int = _WARMUP,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Median seconds of each kind, all of them in turns.

    warmup: rounds that do not count
    before: what is done before each run of a kind, off the clock
    """
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for round_ in range(warmup + steps):
        for name, run in kinds.items():
            if before is not None:
                before[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_ >= warmup:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def _assembled(recipe: Recipe, accelerator: Any) -> Parts:
    try:
        return assemble(recipe, accelerator)
    except UserError as error:
        there = model_folder(getattr(recipe.teacher, "model", None) or "") is not None
        if recipe.teacher_recipe is None or there:  # then something else is wrong
            raise
        raise UserError(f"{error}; the teacher is made by {recipe.teacher_recipe}: run that first") from error


def _step_s_batches(pipeline: Pipeline) -> list[Batch]:
    """The micro-batches of one step of the last stage, on the device."""
    batches = list(pipeline.batches(0, 1, len(pipeline.stages) - 1))
    return [batch.to(pipeline.accelerator.device) for batch in batches]


def _teacher_forward(parts: Parts, micro: Sequence[Batch]) -> Callable[[], object]:
    assert parts.teacher is not None, "the recipe names one"
    # a copy: a stored one leaves the device when a step reads its rows
    teacher, inputs, words = copy.copy(parts.teacher), list(micro[0].inputs), _of_words(micro)

    def forward(*tensors: Any) -> None:
        *given, tokens, _ = tensors
        with parts.accelerator.autocast():
            output = teacher(dict(zip(inputs, given, strict=True)))
            if output.logits is None:
                return
            if words:
                with torch.no_grad():
                    chunked(output.logits, tokens, CHUNK, lambda made, _: made[0, 0])
            else:
                output.logits()

    run = _recorded(parts, forward, nn.Module())
    chosen = _asked(micro)
    return lambda: [run(*batch.inputs.values(), tokens) for batch, tokens in zip(micro, chosen, strict=True)]


def _cross_entropy(parts: Parts, micro: Sequence[Batch]) -> Callable[[], object]:
    """An ordinary training step of the same student: forward, cross-entropy, backward, clip, AdamW."""
    student, inputs, words = parts.student, list(micro[0].inputs), _of_words(micro)
    target = next((name for name in ("classes", "tokens") if name in micro[0].targets), None)
    if target is None:
        raise UserError("bench recipe compares with a step on labels; this recipe's task has none")
    fused = parts.accelerator.device.type == "cuda" or None
    optimizer = torch.optim.AdamW(student.parameters(), lr=_RATE, fused=fused)

    def forward_backward(*tensors: Any) -> None:
        *given, targets, tokens, _ = tensors
        student.train().requires_grad_(True)
        with parts.accelerator.autocast():
            made = _logits(student, dict(zip(inputs, given, strict=True)))
            loss = _next_words(made, targets, tokens) if words else F.cross_entropy(made(), targets)
        (loss / len(micro)).backward()

    run = _recorded(parts, forward_backward, student)
    chosen = _asked(micro)

    def step() -> None:
        for batch, tokens in zip(micro, chosen, strict=True):
            run(*batch.inputs.values(), batch.targets[target], tokens)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _logits(student: nn.Module, inputs: dict[str, Tensor]) -> Logits | Callable[[], Tensor]:
    if isinstance(student, Student):
        made = student.run(inputs, {}).logits
        if made is None:
            raise UserError("bench recipe compares with a step on labels; this student gives no logits")
        return made
    made = student(*inputs.values())
    return lambda: getattr(made, "logits", made)


def _next_words(made: Any, targets: Tensor, tokens: Tensor) -> Tensor:
    """Nats a token, of targets (B, L), over the `tokens` (N,) that have one."""
    wanted = targets.flatten()[tokens]
    entropy = partial(F.cross_entropy, reduction="sum")
    return chunked(made, tokens, CHUNK, lambda x, part: entropy(wide(x), wanted[part])) / len(tokens)


def _distillation(parts: Parts, token_fraction: float, micro: Sequence[Batch]) -> Callable[[], object]:
    """The trainer's step of the last stage, on this share of the tokens."""
    recipe = parts.recipe
    stage = replace(recipe.stages[-1], token_fraction=token_fraction, lr=_RATE)
    changed = replace(recipe, stages=(*recipe.stages[:-1], stage))
    pipeline = Pipeline(replace(parts, recipe=changed))
    distiller = pipeline.distiller(len(pipeline.stages) - 1)
    distiller.to(parts.accelerator.device)
    if any(loss.standardises for loss in distiller.losses.values()):
        distiller.measure(micro)

    def arrange() -> None:  # each time: the kinds share the student
        set_trainable(distiller, stage)
        set_training(distiller, stage)

    arrange()
    strategy = Plain(parts.accelerator)
    strategy.prepare(distiller, lambda given: make_optimizer(given, stage), clip=stage.clip)
    task = parts.tasks[-1]
    stepper = Stepper(
        strategy,
        seed=recipe.seed,
        change=task.change,
        graphed=_graphed(parts),
        recordable=getattr(task, "recordable", False),
    )
    numbers = itertools.count()

    def step() -> None:
        arrange()
        stepper.step(micro, next(numbers))

    return step


def _graphed(parts: Parts) -> bool:
    return parts.recipe.trainer.cuda_graphs and parts.accelerator.device.type == "cuda"


def _recorded(parts: Parts, body: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    """The body, which takes one argument more, as the trainer would run it."""
    return GraphedStep(body, module.parameters()) if _graphed(parts) else lambda *inputs: body(*inputs, None)
