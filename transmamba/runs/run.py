"""One recipe from teacher to report: what `recipes/*.py`, `transmamba distill` and `transmamba.distill`
call."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import load as configs
from ..core.preprocessing import Preprocessing
from ..errors import UserError
from ..evaluation.classification import agreement, summarise
from ..reporting.report import write_report
from .folder import REPORT, RESULTS, claim_folder, sole
from .pipeline import Pipeline
from .recipe import Recipe, Scratch, Stage


def run(
    recipe: Recipe, *, overwrite: bool = False, accelerator: Any = None, quiet: bool = False
) -> dict[str, Any]:
    """Run a recipe, or continue it where it was killed. Returns what RUN/results.json holds.

    Raises UserError for what the user can mend, `trainer.Interrupted` after SIGTERM with the run saved.
    """
    folder = Path(recipe.output_dir).expanduser()
    accelerator = accelerator or make_accelerator(recipe)
    if not accelerator.is_main_process:
        return _run(recipe, folder, accelerator, quiet)
    claim_folder(folder, recipe, overwrite)
    with sole(folder):
        return _run(recipe, folder, accelerator, quiet)


def _run(recipe: Recipe, folder: Path, accelerator: Any, quiet: bool) -> dict[str, Any]:
    """`run`, in a folder that is ours."""
    accelerator.wait_for_everyone()  # until the main process has claimed it
    if (folder / RESULTS).is_file():
        if accelerator.is_main_process and not (folder / REPORT).is_file():  # killed between the two
            write_report(folder)
        return json.loads((folder / RESULTS).read_text())
    taught: dict[str, Any] = {}
    if recipe.teacher_recipe is not None:
        taught = {"minutes": _run_teacher_recipe(recipe, accelerator, quiet)["student"]["minutes"]}
    pipeline = assemble(recipe, accelerator)
    predictions = pipeline.train(folder, quiet)
    results: dict[str, Any] = {"student": predictions.summary}
    if recipe.scratch is not None:
        results["scratch"] = run(
            scratch_recipe(recipe, pipeline.total_steps), accelerator=accelerator, quiet=quiet
        )["student"]
    if pipeline.teacher is not None:
        guide = pipeline.predict(pipeline.teacher, pipeline.task.final_split)
        results["teacher"] = summarise(guide, pipeline.teacher.num_params) | taught
        results["agreement"] = agreement(guide, predictions.predictions)
    else:
        guide = None
    if accelerator.is_main_process:
        pipeline.write(folder, results, predictions.predictions, guide)
        write_report(folder)
    accelerator.wait_for_everyone()
    return results


def assemble(recipe: Recipe, accelerator: Any) -> Pipeline:
    """Build what a recipe names. Raises UserError for every mismatch between its parts."""
    torch.manual_seed(recipe.seed)
    teacher = recipe.teacher.build().to(accelerator.device) if recipe.teacher is not None else None
    if teacher is None:
        probe = recipe.student.build(num_classes=2)
        task = recipe.task.build(preprocessing_of(probe))
    else:
        with accelerator.local_main_process_first():  # what it finds out about the files, the others read
            task = recipe.task.build(teacher.preprocessing)
        task.check_classes(teacher.num_classes)
        if recipe.init is not None and recipe.init.fold:
            teacher.fold()  # here and not in subcloning, which a resumed run leaves out
    torch.manual_seed(recipe.seed)
    student = recipe.student.build(
        num_classes=task.num_classes,
        input_size=None if teacher is None else teacher.preprocessing.input_size,
        view=None if teacher is None else teacher.view,
    )
    if recipe.trainer.grad_checkpointing:
        if not hasattr(student, "set_grad_checkpointing"):
            raise UserError("trainer.grad_checkpointing: this student cannot; set it to false")
        student.set_grad_checkpointing(True)
    return Pipeline(recipe, accelerator, teacher, student.to(accelerator.device), task)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """What a timm or Hugging Face model wants its images to look like."""
    from ..teachers.hf_vit import hugging_face_preprocessing
    from ..teachers.timm_vit import timm_preprocessing

    if hasattr(model, "pretrained_cfg"):
        return Preprocessing.from_pretrained_cfg(timm_preprocessing(model))
    return hugging_face_preprocessing(model.config, getattr(model, "name_or_path", ""))


def scratch_recipe(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of the baseline: the same student, data and number of steps, from labels alone."""
    scratch = recipe.scratch or Scratch()
    stage = Stage(
        name="scratch",
        losses=scratch.losses,
        steps=steps,
        lr=scratch.lr,
        weight_decay=scratch.weight_decay,
        warmup=scratch.warmup,
    )
    return replace(
        recipe,
        output_dir=str(Path(recipe.output_dir) / "scratch"),
        stages=(stage,),
        init=None,
        scratch=None,
        teacher_recipe=None,
        wandb=None,
    )


def _run_teacher_recipe(recipe: Recipe, accelerator: Any, quiet: bool) -> dict[str, Any]:
    """The results of the teacher's own run, made first where they are missing.

    It shares this launch's Accelerator, so it is refused where it wants another precision. Its wandb run is
    left out: the one that was asked for is the student's.
    """
    assert recipe.teacher_recipe is not None, "the caller asked"
    source = recipe.teacher_recipe
    teaching = configs.load(Recipe, Path(source))
    if teaching.trainer.precision != recipe.trainer.precision:
        raise UserError(
            f"{source} trains with precision {teaching.trainer.precision}, this recipe with "
            f"{recipe.trainer.precision}; run it by itself first: recipes/distill.py --config {source}"
        )
    try:
        return run(replace(teaching, wandb=None), accelerator=accelerator, quiet=quiet)
    except UserError as error:
        raise UserError(f"teacher_recipe {source}: {error}") from error


def make_accelerator(recipe: Recipe) -> Any:
    """An Accelerator for this recipe's precision and tracking, on whatever `accelerate launch` set up."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    # a stage without a loss on logits leaves the head without a gradient
    unused = any(
        not any(getattr(loss, "uses_logits", False) for loss in stage.losses)
        and (
            stage.trainable == "all"
            or not all(getattr(loss, "teacher_forced", False) for loss in stage.losses)
        )
        for stage in recipe.stages
    )
    handlers = [
        DistributedDataParallelKwargs(find_unused_parameters=unused, broadcast_buffers=False),
        # one rank may look through a large data set while the others wait for it
        InitProcessGroupKwargs(timeout=timedelta(hours=2)),
    ]
    return Accelerator(
        mixed_precision=recipe.trainer.precision,
        log_with="wandb" if recipe.wandb is not None else None,
        kwargs_handlers=handlers,
    )
