"""What one recipe names, built: how it begins, is trained, is measured, and what it leaves in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..config import load as configs
from ..distillation.distiller import Distiller, geometry_of, make_aligner
from ..ecosystems.folders import STUDENT_FOLDER
from ..evaluation.classification import Predictions, metrics, predict, summarise
from ..reporting.model_card import write_model_card
from ..reporting.tracking import Tracker
from ..students.student import Student, save_model
from ..subcloning.subclone import subclone
from ..teachers.teacher import Teacher
from ..training.trainer import Trainer
from .folder import INDICES, RESULTS, SAMPLES, SUBCLONE
from .recipe import Recipe, Stage, stage_steps

_NUM_SAMPLES = 24
# images from which the teacher's channel statistics are taken
_NUM_CALIBRATION = 1024


@dataclass(frozen=True)
class Trained:
    predictions: Predictions
    summary: dict[str, Any]


class Pipeline:
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
            trainer.run(self._distiller, self.stages)
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
        return calibration_images(self.recipe, self.task, self.accelerator, count)

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
        """samples.npz and model card, then results.json, whose presence says that the run is finished."""
        self._write_samples(folder, student, guide)
        configuration = configs.dump(self.recipe)
        write_model_card(folder / STUDENT_FOLDER, results=results, config=configuration)
        partial = folder / f"{RESULTS}.partial"
        partial.write_text(json.dumps(results, indent=2) + "\n")
        partial.replace(folder / RESULTS)

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


def calibration_images(recipe: Recipe, task: Any, accelerator: Any, count: int) -> list[Tensor]:
    """The first `count` of the task's calibration images, in batches; the same on every rank."""
    if not count:
        return []
    batches = task.calibration(count, recipe.trainer.eval_batch_size)
    return [batch.images.to(accelerator.device) for batch in batches]
