"""One recipe from teacher to report: what `recipes/distill.py`, `transmamba distill` and `transmamba.distill`
call."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import load as configs
from ..evaluation.measured import Measured
from ..reporting.metrics import RESULTS_FILE, as_saved, read_results
from ..reporting.progress import Display
from ..reporting.report import write_report
from ..training.checkpoint import checkpoint_at, list_checkpoints
from ..training.precision import float32_products
from .build import assemble, make_accelerator
from .folder import REPORT, check_folder, claim_folder, held
from .leave import NumbersAlone, leave, leave_numbers_alone, splits_of
from .pipeline import Pipeline
from .recipe import Recipe, Scratch
from .teaching import check_taught, check_teaching, said_of

_SCRATCH = "from scratch"


def run(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    accelerator: Any = None,
    quiet: bool = False,
    check_data: bool = True,
    stop: threading.Event | None = None,
    title: str = "student",
    trunk: Path | None = None,
) -> dict[str, Any]:
    """Run a recipe, or continue it where it was killed. Returns what RUN/results.json holds.

    check_data: look through the evaluation splits before training
    stop:       asks the run to save and stop, from another thread
    title:      which run this is, as its lines begin
    trunk:      another run's checkpoint, at which this one begins

    Raises UserError for what the user can mend, `training.interrupted.Interrupted` after SIGTERM, Ctrl-C or
    `stop`, with the run saved.
    """
    folder = Path(recipe.output_dir).expanduser()
    accelerator = accelerator or make_accelerator(recipe)
    todo = _Run(recipe, folder, accelerator, quiet, check_data, stop, title, trunk)
    with float32_products(recipe.trainer.precision):
        if not accelerator.is_main_process:
            return todo.finish()
        with held(claim_folder(folder, recipe, overwrite)):
            return todo.finish()


class _Run:
    """A recipe in a folder that is ours."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        accelerator: Any,
        quiet: bool,
        check_data: bool,
        stop: threading.Event | None,
        title: str,
        trunk: Path | None,
    ) -> None:
        self.trunk = trunk
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.quiet, self.check_data, self.stop, self.title = quiet, check_data, stop, title

    @property
    def _whole(self) -> bool:
        return self.recipe.leaves == "all"

    def finish(self) -> dict[str, Any]:
        """Everything that is still to be done."""
        self.accelerator.wait_for_everyone()  # until the main process has claimed the folder
        if (self.folder / RESULTS_FILE).is_file():
            if self.accelerator.is_main_process:
                self._end(killed_between=True)
            return read_results(self.folder / RESULTS_FILE)
        taught = {} if self.recipe.teacher_recipe is None else self._teach()
        kind = Pipeline if self._whole else NumbersAlone
        pipeline = kind(assemble(self.recipe, self.accelerator, quiet=self.quiet), self.title)
        trained = pipeline.train(
            self.folder, self.quiet, check_data=self.check_data, stop=self.stop, trunk=self.trunk
        )
        for branch in pipeline.branches:
            begin = checkpoint_at(self.folder / "checkpoints", branch.step)
            self._again(branch.recipe, Path(branch.recipe.output_dir).name, begin)
        scratch = None if self.recipe.scratch is None else self._train_from_scratch(pipeline.total_steps)
        measured = self._measure(pipeline, trained.measured)
        results = measured.results()
        results["student"]["minutes"] = trained.minutes
        if "teacher" in results:
            results["teacher"] |= taught
        if scratch is not None:
            results["scratch"] = scratch
        if pipeline.tuned is not None:
            results["adapter"] = pipeline.tuned.facts()
        if self.accelerator.is_main_process:
            leave(self.folder, pipeline, results, measured)
            self._end()
        self.accelerator.wait_for_everyone()
        task = pipeline.parts.task
        return as_saved(results, task.metrics, splits_of(task))

    def _end(self, killed_between: bool = False) -> None:
        """What is done once the results are there."""
        if not self._whole:
            leave_numbers_alone(self.folder)
        elif not killed_between or not (self.folder / REPORT).is_file():
            write_report(self.folder)

    def _measure(self, pipeline: Pipeline, student: Measured | None) -> Measured:
        """Student and teacher on the final split, in one pass; neither again where it was just measured
        there. A baseline's teacher is measured by the run whose baseline it is."""
        parts = pipeline.parts
        there = set() if student is None else student.names
        models: dict[str, Any] = {"student": parts.student, **pipeline.beside(parts.task.final)}
        if pipeline.answering is not None and self.title != _SCRATCH:
            models["teacher"] = pipeline.answering
        models = {name: model for name, model in models.items() if name not in there}
        if not models:
            assert student is not None, "one of both is there"
            return student
        display = Display(quiet=self.quiet or not self.accelerator.is_main_process)
        found = pipeline.measure(models, parts.task.final, watch=display.watch)
        return found if student is None else student.joined(found)

    def _again(self, recipe: Recipe, title: str, trunk: Path | None = None) -> dict[str, Any]:
        return run(
            recipe,
            accelerator=self.accelerator,
            quiet=self.quiet,
            check_data=self.check_data,
            stop=self.stop,
            title=title,
            trunk=trunk,
        )

    def _train_from_scratch(self, steps: int) -> dict[str, Any]:
        return self._again(scratch_recipe(self.recipe, steps), _SCRATCH)["student"]

    def _teach(self) -> dict[str, Any]:
        """Minutes of the teacher's own run, made first where its results are missing.

        It shares this launch's Accelerator, so it is refused where it wants another precision. Its wandb run
        is left out: the one that was asked for is the student's.
        """
        source = self.recipe.teacher_recipe
        assert source is not None, "the caller asked"
        teaching = load_recipe(source)
        check_teaching(teaching, self.recipe, source)
        teaching.trainer.division(self.accelerator.num_processes)  # refused before anything is trained
        made = Path(teaching.output_dir).expanduser()
        if not (made / RESULTS_FILE).is_file():
            if self.accelerator.is_main_process:
                with said_of(source):  # at once, and not behind two models that are made for a look
                    check_folder(made, teaching)
            if not list_checkpoints(made / "checkpoints"):  # else it was looked at before
                check_taught(self.recipe, teaching, source, self.accelerator)
        with said_of(source):
            results = self._again(replace(teaching, wandb=None), "teacher")
        return {"minutes": results["student"]["minutes"]}


def scratch_recipe(recipe: Recipe, steps: int) -> Recipe:
    """The recipe of the baseline: the same student, data and number of steps, from labels alone."""
    return replace(
        recipe,
        output_dir=str(Path(recipe.output_dir) / "scratch"),
        stages=((recipe.scratch or Scratch()).stage(steps),),
        init=None,
        scratch=None,
        teacher_recipe=None,
        wandb=None,
    )


def located(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with its teacher's recipe found: beside `path`, where it is no file as it is written."""
    source = recipe.teacher_recipe
    if source is None or Path(source).is_file() or not (path.parent / source).is_file():
        return recipe
    return replace(recipe, teacher_recipe=str(path.parent / source))


def load_recipe(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Recipe:
    """A recipe's file with its overrides. Raises ConfigError."""
    return located(configs.load(Recipe, path, overrides), Path(path))
