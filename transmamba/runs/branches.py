"""Runs that leave another one, their trunk, where the decay of their own, shorter stage begins.

Until there both do the same, step for step, so the trunk's checkpoint is their beginning, and students at
several budgets cost one trunk and a decay each (arXiv 2404.06395, section 4).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..reporting.tracking import METRICS_FILE
from ..training.stage import Items, Stage, decay_start, stage_steps
from .folder import BRANCHES, SUBCLONE
from .recipe import Recipe


@dataclass(frozen=True)
class Branch:
    """One such run, and the step, counted over all stages, at which it leaves the trunk."""

    recipe: Recipe
    step: int


def branches_of(recipe: Recipe, items: Sequence[Items]) -> list[Branch]:
    """Those that a recipe's stages name; `items` are what each stage is trained on. Raises UserError for one
    that would leave within the warm-up, or whose earlier stages would be of other lengths."""
    trunk = stage_steps(recipe.stages, items, recipe.trainer.global_batch)
    found = []
    for number, stage in enumerate(recipe.stages):
        for length in stage.branches:
            stages = [replace(other, branches=()) for other in recipe.stages]
            stages[number] = stage.branch(length)
            counts = stage_steps(stages, items, recipe.trainer.global_batch)
            if counts[:number] != trunk[:number]:
                raise UserError(
                    f"stage {stage.name}: with branches, earlier stages cannot be in percent; write steps"
                )
            begin = decay_start(stages[number], counts[number])
            _check(stage, length, begin, round(stage.warmup * trunk[number]))
            folder = Path(recipe.output_dir) / BRANCHES / name_of(stages[number])
            found.append(Branch(_recipe(recipe, folder, stages), sum(trunk[:number]) + begin))
    return found


def _check(stage: Stage, length: float, begin: int, warmed: int) -> None:
    if begin < max(1, warmed):
        raise UserError(
            f"stage {stage.name}: branch {length:g} begins to decay at step {begin}, before the stage's "
            f"warm-up has ended ({warmed}); write a longer one, or a smaller warmup or decay"
        )


def _recipe(recipe: Recipe, folder: Path, stages: list[Stage]) -> Recipe:
    """Its teacher is there; it is compared with the trunk's baseline, and not tracked by itself."""
    return replace(
        recipe,
        output_dir=str(folder),
        stages=tuple(stages),
        scratch=None,
        teacher_recipe=None,
        wandb=None,
    )


def name_of(stage: Stage) -> str:
    """Of a branch's folder: `tokens-50000000`."""
    return f"{stage.unit}-{stage.length}"


def take_over(checkpoint: Path, folder: Path) -> None:
    """What the trunk has logged, which the checkpoint's progress counts on, and how its student began."""
    trunk = checkpoint.parents[1]
    for name in (METRICS_FILE, SUBCLONE):
        if (trunk / name).is_file():
            shutil.copyfile(trunk / name, folder / name)
