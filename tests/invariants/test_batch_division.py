"""Invariant 1: losses never average. Batch 1 x 8 = 8 x 1 = 2 ranks x 4, to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import pytest
import torch
from torch import Tensor

import transmamba.training.trainer
from transmamba.config.registry import LOSSES
from transmamba.core.batch import Batch
from transmamba.core.output import Logits, Term
from transmamba.distillation.signals import Loss, Signals
from transmamba.losses.cross_entropy import CrossEntropy
from transmamba.losses.feature import CosineLoss
from transmamba.runs.pipeline import Pipeline
from transmamba.runs.recipe import Recipe

# (micro-batch, micro-batches of a rank, ranks): eight images a step each time
WHOLE = (8, 1, 1)
DIVISIONS = [(1, 8, 1), (2, 4, 1), (4, 1, 2), (2, 2, 2)]


@dataclass(frozen=True, kw_only=True)
class FirstClasses:
    """Cross-entropy of the images of classes 0 and 1: they are counted as an item of their own, of which a
    micro-batch has more or fewer, down to none."""

    name = "first_classes"
    weight: float = 0.7

    def build(self, geometry: Any) -> Loss:
        return FirstClassesLoss(self.weight)


class FirstClassesLoss(Loss):
    needs_teacher = False
    reads_logits = True

    def item(self, batch: Batch) -> str:
        return "first"

    def forward(self, signals: Signals) -> Term:
        classes = signals.batch.targets["classes"]
        chosen = classes < 2
        inner = CrossEntropy().build()
        assert signals.student.logits is not None
        student = replace(signals.student, logits=Logits(signals.student.logits()[chosen], lambda x: x))
        batch = replace(signals.batch, targets={"classes": classes[chosen]})
        return inner(replace(signals, student=student, batch=batch))


def counted(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Each batch with its images of the first classes counted too."""
    for batch in batches:
        first = int((batch.targets["classes"] < 2).sum())
        yield replace(batch, counts={**batch.counts, "first": first})


STEPS = 3  # the first of them with running means of before, the others with their own


def recipe_of(folder: Path, division: tuple[int, int, int], steps: int) -> Recipe:
    batch, accumulation, ranks = division
    recipe = harness.tiny_recipe(
        folder,
        output_dir=str(folder / "-".join(map(str, (*division, steps)))),
        student__kwargs=dict(harness.VIM),  # no stochastic depth: its draws belong to a micro-batch
        trainer=dict(global_batch=batch * accumulation * ranks, micro_batch=batch, log_every=1, save_every=0),
    )
    losses = (
        FirstClasses(),
        *(LOSSES[name]() for name in harness.classifier_losses()),
        LOSSES["feature"](weight=0.3),
    )
    stage = replace(recipe.stages[1], losses=losses, steps=steps, clip=0.0, lr=1e-3)
    return replace(recipe, stages=(stage,))


def record(recipe: Recipe, path: Path) -> None:
    """Runs; rank 0 saves the gradients of every step and the weights after it."""
    steps: list[dict[str, dict[str, Tensor]]] = []

    class Recording(transmamba.training.trainer.Stepper):
        def _apply(self, total: float, norm: float, parts: dict[str, Tensor]) -> bool:
            named = list(self.distiller.named_parameters())
            gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
            moved = super()._apply(total, norm, parts)
            steps.append({"gradients": gradients, "weights": {n: p.detach().clone() for n, p in named}})
            return moved

    make, load = Pipeline.distiller, Pipeline.batches

    def seen_before(self: Any, index: int) -> Any:
        """Adaptive weights away from one in the very first step."""
        distiller = make(self, index)
        for loss in distiller.losses.values():
            if isinstance(loss, CosineLoss):
                loss.observe(torch.linspace(0.1, 0.9, loss.running.numel()).view_as(loss.running))
        return distiller

    transmamba.training.trainer.Stepper = Recording  # type: ignore[misc]
    Pipeline.distiller = seen_before  # type: ignore[method-assign]
    Pipeline.batches = lambda self, *steps: counted(load(self, *steps))  # type: ignore[method-assign]
    harness.run_quietly(recipe)
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    torch.save(steps, path)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(division, steps) -> what `record` saved, each once."""
    folder, made = tmp_path_factory.mktemp("divided"), {}

    def recorded(division: tuple[int, int, int], steps: int) -> list[dict[str, dict[str, Tensor]]]:
        if (division, steps) not in made:
            path = folder / f"{division}.pt"
            recipe = recipe_of(folder, division, steps)
            run = harness.start if division[2] == 1 else partial(harness.in_ranks, division[2])
            process = run(record, recipe, path)
            if process is not None:
                harness.finish(process)
            made[division, steps] = torch.load(path, weights_only=True)
        return made[division, steps]

    return recorded


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """|a - b| / |b| over all tensors."""
    assert a.keys() == b.keys()
    gap = sum((a[name] - b[name]).double().square().sum() for name in a)
    return float((gap / sum(b[name].double().square().sum() for name in b)).sqrt())


@pytest.mark.parametrize("division", DIVISIONS)
def test_one_steps_gradients(recorded: Any, division: tuple[int, int, int]) -> None:
    whole, divided = recorded(WHOLE, STEPS)[0]["gradients"], recorded(division, STEPS)[0]["gradients"]
    assert len(whole) > 50 and all(gradient.abs().sum() > 0 for gradient in whole.values())
    assert distance(divided, whole) < 1e-6
    for name, gradient in whole.items():
        near_nothing = 1e-6 * float(gradient.abs().max())
        torch.testing.assert_close(divided[name], gradient, rtol=1e-4, atol=near_nothing)


@pytest.mark.parametrize("division", DIVISIONS)
def test_all_steps(recorded: Any, division: tuple[int, int, int]) -> None:
    """Adaptive weights, Adam and the token draw too: the paths stay together."""
    whole, divided = recorded(WHOLE, STEPS), recorded(division, STEPS)
    start = whole[0]["weights"]
    for ours, theirs in zip(divided, whole, strict=True):
        assert distance(ours["gradients"], theirs["gradients"]) < 1e-4
    moved = distance(whole[-1]["weights"], start)
    assert distance(divided[-1]["weights"], whole[-1]["weights"]) < 1e-3 * moved
