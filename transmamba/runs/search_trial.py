"""One trial of a search: a recipe with some methods, trained and scored on the held-out split."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..config import load as configs
from ..core.task import Metric
from ..data.hashing import SEEDS
from ..errors import UserError, WrongValues
from ..peft.search.study import Pruned
from ..reporting.tracking import Tracker
from ..training.interrupted import Interrupted
from .adapter import Adapter
from .build import assemble
from .pipeline import Pipeline
from .recipe import Recipe

# of the training data, where the recipe itself holds nothing out
HELD_OUT = 0.2


def held_out(task: Any) -> Any:
    """The task, measured on a share of its training data alone, or where data are drawn on others than the
    test's: its test split is never opened. Raises UserError for one that can hold nothing out."""
    fields = {field.name for field in dataclasses.fields(task)}
    if "eval_seed" in fields:
        return replace(task, eval_seed=(task.eval_seed + 1) % SEEDS)
    if "validation" not in fields:
        raise UserError(
            f"task {task.name} can hold no training data out (validation), and a search that looks at the "
            "test split would choose by it; give it another task"
        )
    changes: dict[str, Any] = {"validation": task.validation or HELD_OUT, "final_split": None}
    changes |= dict.fromkeys(fields & {"benchmarks", "generated", "zero_shot"}, ())
    return replace(task, **{key: value for key, value in changes.items() if key in fields})


def headline(task: Any) -> Metric:
    """What a built task's models are compared by: the first number of its table."""
    return next((metric for metric in task.metrics if metric.headline), task.metrics[0])


def with_methods(recipe: Recipe, methods: Sequence[Mapping[str, Any]]) -> Recipe:
    """The recipe with these in place of its own. Raises UserError."""
    values = {} if recipe.adapter is None else configs.dump(recipe.adapter)
    adapter = configs.parse(Adapter, {**values, "methods": list(methods)}, "adapter")
    try:
        return replace(recipe, adapter=adapter)
    except WrongValues as error:
        raise UserError(str(error)) from None


class _Watched(Pipeline):
    """A pipeline whose trial may be stopped at an evaluation."""

    trial: Any
    metric: Metric
    seen = 0
    begun = False

    def check_stages(self) -> None:
        """The last that may refuse it before its first step."""
        super().check_stages()
        self.begun = True

    def _evaluate(self, student: nn.Module, tracker: Tracker) -> dict[str, float]:
        found = super()._evaluate(student, tracker)
        self.score = found[self.metric.key]
        self.trial.report(self.score, self.seen)
        self.seen += 1
        return found

    def save(self, folder: Path) -> None:
        """Nothing: the score is all that is wanted."""

    def batches(self, start: int, steps: int, stage: int) -> Any:
        for batch in super().batches(start, steps, stage):
            if self.seen and self.trial.should_prune():
                raise Pruned(f"behind the others at evaluation {self.seen}")
            yield batch


def methods_of(recipe: Recipe) -> list[dict[str, Any]]:
    """With all their options."""
    assert recipe.adapter is not None, "made by with_methods"
    return [configs.dump(method) for method in recipe.adapter.methods]


def clear(folder: Path) -> None:
    """Take away what trials of a search left that was killed. Of the only process that is in the folder."""
    for place in folder.glob("trial-*"):
        shutil.rmtree(place, ignore_errors=True)


def score(trial: Any, recipe: Recipe, folder: Path, accelerator: Any) -> float:
    """Train the recipe in a folder that is gone afterwards. Raises Pruned where it is behind the others, and
    where it cannot be trained; free where that was found before its first step."""
    place = folder / f"trial-{trial.number}"
    shutil.rmtree(place, ignore_errors=True)
    trainer = replace(recipe.trainer, save_every=None)  # a search that is killed begins its trials anew
    recipe = replace(recipe, output_dir=str(place), trainer=trainer, wandb=None, teacher_recipe=None)
    pipeline = None
    try:
        pipeline = _Watched(assemble(recipe, accelerator, quiet=True), "trial")
        pipeline.trial, pipeline.metric = trial, headline(pipeline.parts.task)
        pipeline.train(place, quiet=True, check_data=False)
        return float(pipeline.score)
    except Interrupted:
        raise
    except UserError as error:
        raise Pruned(str(error), free=pipeline is None or not pipeline.begun) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
