"""One recipe from teacher to report: what `recipes/*.py`, `transmamba distill` and `transmamba.distill`
call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import config as configs
from .calibration import calibrate
from .checkpoint import list_checkpoints
from .data.preprocessing import Preprocessing
from .distiller import Distiller, geometry_of, make_aligner
from .errors import UserError
from .evaluation import Predictions, agreement, metrics, predict, summarise
from .folders import STUDENT_FOLDER
from .model_card import write_model_card
from .recipe import Recipe, Scratch, Stage, stage_steps
from .report import write_report
from .rotation import principal_axes
from .run_folder import (
    INDICES,
    REPORT,
    RESULTS,
    ROTATION,
    SAMPLES,
    SUBCLONE,
    claim_folder,
    cloned_tensors,
    sole,
)
from .student import Student, save_model
from .subclone import subclone
from .teacher import Teacher
from .tracking import Tracker
from .trainer import Trainer

_NUM_SAMPLES = 24
# images from which the teacher's channel statistics are taken
_NUM_CALIBRATION = 1024


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
    line = assemble(recipe, accelerator, folder)
    predictions = line.train(folder, quiet)
    results: dict[str, Any] = {"student": predictions.summary}
    if recipe.scratch is not None:
        results["scratch"] = run(
            scratch_recipe(recipe, line.total_steps), accelerator=accelerator, quiet=quiet
        )["student"]
    if line.teacher is not None:
        guide = line.predict(line.teacher, line.task.final_split)
        results["teacher"] = summarise(guide, line.teacher.num_params) | taught
        results["agreement"] = agreement(guide, predictions.predictions)
    else:
        guide = None
    if accelerator.is_main_process:
        line.write(folder, results, predictions.predictions, guide)
    accelerator.wait_for_everyone()
    return results


@dataclass(frozen=True)
class Trained:
    predictions: Predictions
    summary: dict[str, Any]


class Line:
    """Teacher, student, task and stages of one recipe, built and ready to train."""

    def __init__(
        self, recipe: Recipe, accelerator: Any, teacher: Teacher | None, student: nn.Module, task: Any
    ) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.teacher, self.student, self.task = teacher, student, task
        processes = accelerator.num_processes
        global_batch = recipe.trainer.batch_size * recipe.trainer.accumulation * processes
        counts = stage_steps(recipe.stages, task.num_train, global_batch)
        self.stages: list[tuple[Stage, int]] = list(zip(recipe.stages, counts, strict=True))
        self.starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        self.aligner: nn.Module | None = None

    @property
    def total_steps(self) -> int:
        return self.starts[-1]

    def train(self, folder: Path, quiet: bool) -> Trained:
        """Initialise (unless resumed), run every stage, save RUN/student, evaluate it."""
        recipe = self.recipe
        shown = configs.dump(recipe)
        with Tracker(
            folder, self.accelerator, recipe.wandb, self.total_steps, quiet, config=shown
        ) as tracker:
            trainer = Trainer(
                self.accelerator,
                recipe.trainer,
                folder,
                tracker,
                batches=self._batches,
                mix=self.task.mix if (self.task.config.mixup or self.task.config.cutmix) else None,
                evaluate=self._evaluate,
                seed=recipe.seed,
            )
            if self.accelerator.is_main_process:
                np.save(folder / INDICES, self.task.train_indices)
            resumed = trainer.resume()
            if resumed:
                tracker.say(f"resuming {folder} at step {trainer.progress.step} of {self.total_steps}")
            else:
                tracker.rewind(0)
            self._initialise(folder, resumed, tracker)
            self.accelerator.wait_for_everyone()  # the main process has written what all now read
            cloned = cloned_tensors(folder)
            trainer.run(self._distiller, self.stages, cloned)
            student = self.predict(self.student, self.task.final_split)
            if self.accelerator.is_main_process:
                save_model(self.student, folder / STUDENT_FOLDER, self.task.preprocessing)
            summary = summarise(student, sum(p.numel() for p in self.student.parameters()))
            summary["minutes"] = trainer.progress.seconds / 60
        return Trained(student, summary)

    def _initialise(self, folder: Path, resumed: bool, tracker: Tracker) -> None:
        kept = None
        init = self.recipe.init
        if (
            self.teacher is not None
            and init is not None
            and isinstance(self.student, Student)
            and not resumed
        ):
            counted = init.importance == "activation" or init.average
            images = self._images(init.calibration_images if counted else 0)
            report, select = subclone(self.student, self.teacher, init, images)
            images = self._images(init.calibrate)
            report.calibrated = calibrate(self.student, self.teacher, init, select, images)
            kept = select.residual
            if self.accelerator.is_main_process:
                report.save(folder / SUBCLONE)
            tracker.say(report.summary())
        elif self.accelerator.is_main_process and not resumed:
            (folder / SUBCLONE).unlink(missing_ok=True)
        if self.teacher is not None and isinstance(self.student, Student):
            geometry = geometry_of(self.student, self.teacher)
            assert geometry is not None, "there are a teacher and a student"
            losses = [loss.build(geometry) for stage, _ in self.stages for loss in stage.losses]
            needed: set[int] = set().union(*(loss.projections() for loss in losses))
            self.aligner = make_aligner(self.student, self.teacher, needed, kept)
            if any(loss.standardises for loss in losses) and not resumed:
                images = self._images(_NUM_CALIBRATION)
                self.aligner.to(self.accelerator.device).measure(self.teacher, images)

    def _images(self, count: int) -> list[Tensor]:
        return _images(self.recipe, self.task, self.accelerator, count)

    def _distiller(self, index: int) -> Distiller:
        stage = self.stages[index][0]
        return Distiller(
            self.student,
            self.teacher,
            stage.losses,
            aligner=self.aligner,  # type: ignore[arg-type]
            token_fraction=stage.token_fraction,
            seed=self.recipe.seed,
        )

    def _batches(self, start: int, steps: int, stage: int) -> Iterator[Any]:
        trainer = self.recipe.trainer
        return self.task.train_batches(
            micro_batch=trainer.batch_size,
            accumulation=trainer.accumulation,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            seed=self.recipe.seed,
            start_step=self.starts[stage] + start,
            num_steps=steps - start,
            workers=trainer.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _evaluate(self, student: nn.Module) -> dict[str, float]:
        return metrics(self.predict(student, self.task.eval_split))

    def predict(self, model: nn.Module | Teacher, split: str) -> Predictions:
        """Predictions on a whole split, the same on every rank."""
        from accelerate.utils import gather_object

        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = self.task.eval_batches(
            split,
            batch_size=self.recipe.trainer.eval_batch_size,
            workers=self.recipe.trainer.workers,
            rank=rank,
            world=world,
        )
        mine = predict(model, batches, self.accelerator.device, self.accelerator.autocast)
        if world == 1:
            return mine
        shards = gather_object([mine])
        total = sum(len(shard.labels) for shard in shards)
        classes = max(shard.logits.shape[1] for shard in shards)  # a rank may have had no image
        logits = mine.logits.new_empty(total, classes)
        labels = mine.labels.new_empty(total)
        for r, shard in enumerate(shards):
            if not len(shard.labels):
                continue
            logits[r::world], labels[r::world] = shard.logits, shard.labels
        rate = sum(shard.images_per_second for shard in shards)
        return Predictions(logits, labels, rate, max(shard.peak_memory_mb for shard in shards))

    def write(
        self, folder: Path, results: dict[str, Any], student: Predictions, guide: Predictions | None
    ) -> None:
        """samples.npz and model card, then results.json, whose presence says that the run is finished; the
        report."""
        self._write_samples(folder, student, guide)
        configuration = configs.dump(self.recipe)
        write_model_card(folder / STUDENT_FOLDER, results=results, config=configuration)
        partial = folder / f"{RESULTS}.partial"
        partial.write_text(json.dumps(results, indent=2) + "\n")
        partial.replace(folder / RESULTS)
        write_report(folder)

    def _write_samples(self, folder: Path, student: Predictions, guide: Predictions | None) -> None:
        predicted = student.logits.argmax(dim=-1).numpy()
        labels = student.labels.numpy()
        disagree = np.zeros(len(labels), dtype=bool)
        arrays: dict[str, Any] = {"labels": labels, "student_pred": predicted}
        if guide is not None:
            arrays["teacher_pred"] = guide.logits.argmax(dim=-1).numpy()
            disagree = arrays["teacher_pred"] != predicted
        interesting = np.flatnonzero(disagree | (predicted != labels))[: _NUM_SAMPLES // 2]
        others = np.setdiff1d(np.arange(len(labels)), interesting)[: _NUM_SAMPLES - len(interesting)]
        chosen = np.concatenate([interesting, others])
        indices = self.task.indices(self.task.final_split)
        arrays["image_index"] = chosen
        arrays["images"] = self.task.images(indices[chosen], self.task.final_split)
        arrays["class_names"] = np.array(self.task.classes)
        np.savez_compressed(folder / SAMPLES, **arrays)


def assemble(recipe: Recipe, accelerator: Any, folder: Path | None = None) -> Line:
    """Build what a recipe names; `folder` is RUN, where it is run and not only looked at.

    Raises UserError for every mismatch between its parts."""
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
        if recipe.init is not None and recipe.init.rotate == "pca":
            teacher.rotate(_axes(recipe, accelerator, teacher, task, folder))
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
    return Line(recipe, accelerator, teacher, student.to(accelerator.device), task)


def _axes(recipe: Recipe, accelerator: Any, teacher: Teacher, task: Any, folder: Path | None) -> Tensor:
    """The teacher's principal axes as this run found them when it began, (D, D).

    Kept in RUN/rotation.safetensors and not found anew, since another device or number of threads rounds
    differently, and axes of nearly the same energy would then change places under a half-trained student.
    """
    assert recipe.init is not None, "the caller asked"
    count = recipe.init.calibration_images
    if folder is None:
        return principal_axes(teacher.view, _images(recipe, task, accelerator, count))
    path = folder / ROTATION
    with accelerator.main_process_first():
        # before the first checkpoint nothing depends on what is there, and another recipe may have left it
        if accelerator.is_main_process and not list_checkpoints(folder / "checkpoints"):
            axes = principal_axes(teacher.view, _images(recipe, task, accelerator, count))
            partial = folder / f"{ROTATION}.partial"
            save_file({"axes": axes.contiguous()}, partial)
            partial.replace(path)
        try:
            return load_file(path)["axes"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}), but the run began in its axes; run anew with --overwrite"
            ) from error


def _images(recipe: Recipe, task: Any, accelerator: Any, count: int) -> list[Tensor]:
    """The first `count` of the task's calibration images, in batches; the same on every rank."""
    if not count:
        return []
    batches = task.calibration(count, recipe.trainer.eval_batch_size)
    return [batch.images.to(accelerator.device) for batch in batches]


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """What a timm or Hugging Face model wants its images to look like."""
    from .teachers.hf_vit import hugging_face_preprocessing
    from .teachers.timm_vit import timm_preprocessing

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
            f"{recipe.trainer.precision}; run it by itself first: recipes/finetune.py --config {source}"
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
