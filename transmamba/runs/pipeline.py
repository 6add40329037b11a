"""One recipe's parts put to work: how it begins, is trained, is measured, and what its folder has then."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import load as configs
from ..core.batch import Batch
from ..core.task import Pass, Steps
from ..core.tower import Student
from ..data.hashing import hash64
from ..distillation.build import build_losses, geometry_of, make_aligners, measure_streams
from ..distillation.distiller import Distiller
from ..ecosystems.find import save_model
from ..ecosystems.folders import STUDENT_FOLDER
from ..errors import UserError
from ..evaluation.measured import Measured
from ..evaluation.run import ModelRunner, alone, measure
from ..reporting.tracking import Tracker
from ..subcloning.subclone import subclone
from ..teachers.teacher import Teacher
from ..training.checkpoint import list_checkpoints
from ..training.optimizer import check_stage
from ..training.stage import Items, Stage, stage_steps
from ..training.trainer import Trainer
from .adapter import begin_adapter, save_adapter
from .branches import branches_of, take_over
from .build import Parts
from .folder import INDICES, SUBCLONE
from .stages import begins_of, recordable_of
from .stored import train_batches

# items from which the teacher's channel statistics are taken
_NUM_CALIBRATION = 1024
# unreadable items that a message names
_NAMED = 3


@dataclass(frozen=True)
class Trained:
    """The student as it was measured on the final split, if that was the watched one too, and its minutes."""

    measured: Measured | None
    minutes: float


class Pipeline:
    """Parts of one recipe, ready to train.

    title: which run this is, as its lines begin
    """

    def __init__(self, parts: Parts, title: str = "student") -> None:
        self.parts, self.title = parts, title
        recipe = parts.recipe
        self.accelerator = parts.accelerator
        items = [Items(task.num_train, getattr(task, "row_tokens", None)) for task in parts.tasks]
        counts = stage_steps(recipe.stages, items, recipe.trainer.global_batch)
        self.branches = branches_of(recipe, items)
        self.stages: list[tuple[Stage, int]] = list(zip(recipe.stages, counts, strict=True))
        self.total_steps, self.begins = sum(counts), begins_of(parts.tasks, counts)
        self.aligners: nn.ModuleDict | None = None
        self._last: Measured | None = None

    def train(
        self,
        folder: Path,
        quiet: bool,
        *,
        check_data: bool = True,
        stop: threading.Event | None = None,
        trunk: Path | None = None,
    ) -> Trained:
        """Initialise (unless resumed), run every stage, save RUN/student.

        trunk: another run's checkpoint, at which this one begins
        """
        recipe, task = self.parts.recipe, self.parts.task
        fresh = not list_checkpoints(folder / "checkpoints")
        if trunk is not None and fresh and self.accelerator.is_main_process:
            take_over(trunk, folder)
        with Tracker(
            folder,
            self.accelerator,
            recipe.wandb,
            self.total_steps,
            quiet,
            config=configs.dump(recipe),
            title=self.title,
            stages=len(self.stages),
            metrics=task.metrics,
        ) as tracker:
            trainer = Trainer(
                self.accelerator,
                recipe.trainer,
                folder,
                tracker,
                batches=self.batches,
                change=self.change,
                recordable=recordable_of(self.parts.tasks),
                evaluate=lambda student: self._evaluate(student, tracker),
                seed=recipe.seed,
                stop=stop,
                kept=[branch.step for branch in self.branches],
            )
            if resumed := trainer.resume(trunk):
                tracker.say(f"resuming {folder} at step {trainer.progress.step} of {self.total_steps}")
            else:
                tracker.rewind(0)
                self._check_data(check_data)
            if self.accelerator.is_main_process and hasattr(task, "train_indices"):
                np.save(folder / INDICES, task.train_indices)
            self._check_writing(trainer)
            self._initialise(folder, resumed, tracker)
            if self.tuned is not None:
                tracker.say(begin_adapter(self, self.tuned, trainer.strategy.name, resumed))
            self.check_stages()
            self.accelerator.wait_for_everyone()  # the main process has written what all now read
            trainer.run(self.distiller, self.stages)
            if self.accelerator.is_main_process:
                self.save(folder)
        return Trained(self._last if task.watched == task.final else None, trainer.progress.seconds / 60)

    def save(self, folder: Path) -> None:
        """RUN/student, and RUN/adapter where there is one."""
        if self.tuned is not None:
            save_adapter(self.tuned, folder)
        save_model(self.parts.student, folder / STUDENT_FOLDER, self.parts.task.preprocessing)

    def check_stages(self) -> None:
        """Raises UserError for every stage's mistakes, and the baseline's, before the first is trained."""
        parts = self.parts
        found = [(self.distiller(k), stage, parts.tasks[k]) for k, (stage, _) in enumerate(self.stages)]
        if (scratch := parts.recipe.scratch) is not None:
            with torch.random.fork_rng(devices=[]):  # of losses that begin at random
                each = Distiller(parts.student, parts.teacher, scratch.losses), scratch.stage(1), parts.task
            found.append(each)
        for distiller, stage, task in found:
            check_stage(distiller, stage, getattr(task, "inputs", None), getattr(task, "targets", None))

    def _check_data(self, wanted: bool) -> None:
        """Raises UserError where an evaluation split holds what cannot be read: training would end there."""
        if not wanted or not self.accelerator.is_main_process:
            return
        found = list(itertools.islice(self.parts.task.look_through(), _NAMED + 1))
        if found:
            more = "; and more" if len(found) > _NAMED else ""
            raise UserError(f"{'; '.join(found[:_NAMED])}{more} (--no-check-data trains all the same)")

    def _check_writing(self, trainer: Trainer) -> None:
        """Raises UserError where a student is to write while its weights are spread: training would end at
        its first evaluation."""
        if trainer.strategy.whole:
            return
        for evaluator in self.parts.task.evaluators(self.parts.task.watched):
            if (instead := getattr(evaluator, "writes", None)) is not None:
                raise UserError(
                    f"under {trainer.strategy.name} the student's weights are sharded over processes, and so "
                    f"it does not write, as the {evaluator.split} split asks it to while it trains; write "
                    f"{instead}, or launch with recipes/accelerate/ddp.yaml"
                )

    def _initialise(self, folder: Path, resumed: bool, tracker: Tracker) -> None:
        """Subclone, unless resumed, and make the aligners of all stages."""
        student, teacher, init = self.parts.student, self.parts.teacher, self.parts.recipe.init
        kept: Mapping[str, Tensor] | None = None
        begins = teacher is not None and self.tuned is None and not resumed
        if begins and init is not None and isinstance(student, Student):
            assert teacher is not None, "asked above"
            counted = init.importance == "activation" or init.average
            report, select = subclone(
                student, teacher, init, self.calibration(init.calibration_images if counted else 0)
            )
            kept = {stream: chosen.residual for stream, chosen in select.items()}
            if self.accelerator.is_main_process:
                report.save(folder / SUBCLONE)
            tracker.say(report.summary())
        elif self.accelerator.is_main_process and not resumed:
            (folder / SUBCLONE).unlink(missing_ok=True)
        if teacher is None or not isinstance(student, Student):
            return
        geometry = geometry_of(student, teacher)
        built = [build_losses(stage.losses, geometry, student) for stage, _ in self.stages]
        losses = [loss for each in built for loss in each.values()]
        self.aligners = make_aligners(student, teacher, losses, kept)
        if any(loss.standardises for loss in losses) and not resumed:
            self.aligners.to(self.accelerator.device)
            measure_streams(self.aligners, teacher, self.calibration(_NUM_CALIBRATION))

    @property
    def tuned(self) -> Any:
        """What is known of the adapter that is trained; None where the student itself is."""
        return getattr(self.parts.student, "tuned", None)

    def calibration(self, count: int) -> list[Batch]:
        """The first `count` of the task's calibration items, in batches; the same on every rank."""
        if not count:
            return []
        batches = self.parts.task.calibration(count, self.parts.recipe.trainer.eval_batch_size)
        return [batch.to(self.accelerator.device) for batch in batches]

    def distiller(self, index: int) -> Distiller:
        """Stage `index`'s. What its losses begin with follows from (seed, stage), wherever a run was
        killed."""
        stage, seed = self.stages[index][0], self.parts.recipe.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(hash64(seed, index)[0] >> 1))
            return Distiller(
                self.parts.student,
                self.parts.teacher,
                stage.losses,
                aligners=self.aligners,
                token_fraction=stage.token_fraction,
                seed=seed,
            )

    def batches(self, start: int, steps: int, stage: int) -> Iterator[Batch]:
        """This rank's micro-batches of a stage, from its step `start` on."""
        trainer = self.parts.recipe.trainer
        micro, accumulation = trainer.division(self.accelerator.num_processes)
        return train_batches(
            self.parts.tasks[stage],
            self.parts.teacher,
            Steps(
                micro_batch=micro,
                accumulation=accumulation,
                rank=self.accelerator.process_index,
                world=self.accelerator.num_processes,
                seed=self.parts.recipe.seed,
                start_step=self.begins[stage] + start,
                num_steps=steps - start,
                workers=trainer.workers,
                pin_memory=self.accelerator.device.type == "cuda",
            ),
        )

    def change(self, batch: Batch, seed: int, stage: int) -> Batch:
        """What a stage's task does to a batch on its device."""
        return self.parts.tasks[stage].change(batch, seed)

    def _evaluate(self, student: nn.Module, tracker: Tracker) -> dict[str, float]:
        split = self.parts.task.watched
        models: dict[str, nn.Module | Teacher] = {"student": student, **self.beside(split)}
        self._last = self.measure(models, split, tracker.say, tracker.watch)
        return self._last.metrics("student")

    def beside(self, split: str) -> dict[str, Teacher]:
        """The teacher, where what a split is measured by compares it with the student in one pass."""
        evaluators = self.parts.task.evaluators(split)
        together = any(getattr(evaluator, "together", False) for evaluator in evaluators)
        teacher = self.answering
        return {} if teacher is None or not together else {"teacher": teacher}

    @property
    def answering(self) -> Teacher | None:
        """The teacher, if it has a head: one without answers nothing that a student could be compared
        with."""
        teacher = self.parts.teacher
        return teacher if isinstance(teacher, Teacher) and teacher.view.heads else None

    def measure(
        self,
        models: Mapping[str, nn.Module | Teacher],
        split: str,
        say: Callable[[str], None] | None = None,
        watch: Callable[[Iterator[Batch], str], Iterator[Batch]] | None = None,
    ) -> Measured:
        """What the task's evaluators find out about these models on a whole split; the same on every rank.

        say, watch: as `evaluation.run.measure` takes them
        """
        from accelerate.utils import gather_object

        accelerator, trainer = self.accelerator, self.parts.recipe.trainer
        runners = {
            name: ModelRunner(
                model,
                accelerator.device,
                accelerator.autocast,
                kind="teacher" if isinstance(model, Teacher) else "student",
            )
            for name, model in models.items()
        }
        passing = Pass(
            batch_size=trainer.eval_batch_size,
            workers=trainer.workers,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        gather = alone if accelerator.num_processes == 1 else lambda mine: gather_object([mine])
        return measure(self.parts.task.evaluators(split), runners, passing, gather, say=say, watch=watch)
