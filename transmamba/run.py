"""One recipe from teacher to report: what `recipes/*.py`, `transmamba distill` and `transmamba.distill`
call."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import config as configs
from .checkpoint import list_checkpoints
from .data.preprocessing import Preprocessing
from .distiller import Distiller, geometry_of, make_aligner
from .errors import UserError
from .evaluation import Predictions, agreement, metrics, predict, summarise
from .folders import STUDENT_FOLDER
from .model_card import write_model_card
from .recipe import Recipe, Scratch, Stage, stage_steps
from .report import write_report
from .student import Student, save_model
from .subclone import subclone
from .teacher import Teacher
from .tracking import METRICS_FILE, Tracker
from .trainer import Trainer

RESULTS, CONFIG, REPORT = "results.json", "config.yaml", "report.html"
SUBCLONE, SAMPLES = "subclone.json", "samples.npz"
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "accelerate", "numpy", "transmamba")
_NUM_SAMPLES = 24


def run(
    recipe: Recipe, *, overwrite: bool = False, accelerator: Any = None, quiet: bool = False
) -> dict[str, Any]:
    """Run a recipe, or continue it where it was killed. Returns what RUN/results.json holds.

    Raises UserError for what the user can mend, `trainer.Interrupted` after SIGTERM with the run saved.
    """
    folder = Path(recipe.output_dir).expanduser()
    accelerator = accelerator or make_accelerator(recipe)
    if accelerator.is_main_process:
        claim_folder(folder, recipe, overwrite)
    accelerator.wait_for_everyone()
    if (folder / RESULTS).is_file():
        if accelerator.is_main_process and not (folder / REPORT).is_file():  # killed between the two
            write_report(folder)
        return json.loads((folder / RESULTS).read_text())
    if recipe.teacher_recipe is not None:
        _run_teacher_recipe(recipe, accelerator, quiet)
    line = assemble(recipe, accelerator)
    predictions = line.train(folder, quiet)
    results: dict[str, Any] = {"student": predictions.summary}
    if recipe.scratch is not None:
        results["scratch"] = run(
            scratch_recipe(recipe, line.total_steps), accelerator=accelerator, quiet=quiet
        )["student"]
    if line.teacher is not None:
        guide = line.predict(line.teacher)
        results["teacher"] = summarise(guide, line.teacher.num_params)
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
            resumed = trainer.resume()
            if resumed:
                tracker.say(f"resuming {folder} at step {trainer.progress.step} of {self.total_steps}")
            else:
                tracker.rewind(0)
            self._initialise(folder, resumed, tracker)
            cloned = _cloned(folder)
            trainer.run(self._distiller, self.stages, cloned)
            student = self.predict(self.student)
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
            images: list[Tensor] = []
            if init.importance == "activation" and init.calibration_images:
                batches = self.task.calibration(init.calibration_images, self.recipe.trainer.eval_batch_size)
                images = [batch.images.to(self.accelerator.device) for batch in batches]
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
            needed: set[int] = set()
            for stage, _ in self.stages:
                for loss in stage.losses:
                    needed |= loss.build(geometry).projections()
            self.aligner = make_aligner(self.student, self.teacher, needed, kept)

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
        return metrics(self.predict(student))

    def predict(self, model: nn.Module | Teacher) -> Predictions:
        """Predictions on the whole evaluation split, the same on every rank."""
        from accelerate.utils import gather_object

        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = self.task.eval_batches(
            self.task.eval_split,
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
        logits = mine.logits.new_empty(total, mine.logits.shape[1])
        labels = mine.labels.new_empty(total)
        for r, shard in enumerate(shards):
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
        indices = self.task.indices(self.task.eval_split)
        arrays["image_index"] = chosen
        arrays["images"] = self.task.images(indices[chosen], self.task.eval_split)
        arrays["class_names"] = np.array(self.task.classes)
        np.savez_compressed(folder / SAMPLES, **arrays)


def assemble(recipe: Recipe, accelerator: Any) -> Line:
    """Build what a recipe names. Raises UserError for every mismatch between its parts."""
    torch.manual_seed(recipe.seed)
    teacher = recipe.teacher.build().to(accelerator.device) if recipe.teacher is not None else None
    if teacher is None:
        probe = recipe.student.build(num_classes=2)
        task = recipe.task.build(preprocessing_of(probe))
    else:
        task = recipe.task.build(teacher.preprocessing)
        if any(loss.name == "kl" for stage in recipe.stages for loss in stage.losses):
            task.check_classes(teacher.num_classes)
    torch.manual_seed(recipe.seed)
    student = recipe.student.build(
        num_classes=task.num_classes,
        input_size=None if teacher is None else teacher.preprocessing.input_size,
        view=None if teacher is None else teacher.view,
    )
    return Line(recipe, accelerator, teacher, student.to(accelerator.device), task)


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


def _run_teacher_recipe(recipe: Recipe, accelerator: Any, quiet: bool) -> None:
    assert recipe.teacher_recipe is not None, "the caller asked"
    path = Path(recipe.teacher_recipe)
    teacher_recipe = configs.load(Recipe, path)
    run(teacher_recipe, accelerator=accelerator, quiet=quiet)


def make_accelerator(recipe: Recipe) -> Any:
    """An Accelerator for this recipe's precision and tracking, on whatever `accelerate launch` set up."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # a stage without a loss on logits leaves the head without a gradient
    unused = any(
        not any(loss.name in ("cross_entropy", "kl") for loss in stage.losses)
        and (stage.trainable == "all" or not all(loss.name == "mixer" for loss in stage.losses))
        for stage in recipe.stages
    )
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=unused, broadcast_buffers=False)
    return Accelerator(
        mixed_precision=recipe.trainer.precision,
        log_with="wandb" if recipe.wandb is not None else None,
        kwargs_handlers=[kwargs],
    )


def claim_folder(folder: Path, recipe: Recipe, overwrite: bool) -> None:
    """Make `folder` this recipe's, or find that it already is. Another run's is refused, or with `overwrite`
    removed. Raises UserError naming the first differences."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {str(folder)!r} is a file; write a folder")
    if folder.exists() and any(folder.iterdir()):
        _refuse_what_is_no_run(folder)
        if overwrite:
            shutil.rmtree(folder)
        elif _has_begun(folder):
            _refuse_another_run(folder, recipe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _has_begun(folder):
            configs.save_yaml(recipe, folder / CONFIG)
        (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output_dir {str(folder)!r} cannot be written: {error.strerror}") from error


def _has_begun(folder: Path) -> bool:
    """Whether there is a row or a checkpoint to continue. Before that a mistake in its recipe may have
    stopped the run, and the mended recipe takes its place."""
    rows = folder / METRICS_FILE
    return bool(list_checkpoints(folder / "checkpoints")) or (rows.is_file() and rows.stat().st_size > 0)


def _refuse_what_is_no_run(folder: Path) -> None:
    """Not even with `overwrite`: what is there may be dear to the user. A run killed while it wrote its first
    file is one."""
    names = {path.name for path in folder.iterdir()}
    if CONFIG not in names and names != {f"{CONFIG}.partial"}:
        raise UserError(f"output_dir {str(folder)!r} holds something that is no run; choose another folder")


def _refuse_another_run(folder: Path, recipe: Recipe) -> None:
    old = configs.load(Recipe, folder / CONFIG)
    changes = list(differences(configs.dump(old), configs.dump(recipe)))
    if changes:
        shown = "; ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
        raise UserError(
            f"output_dir {str(folder)!r} holds another run ({shown}); "
            "choose another output_dir, or --overwrite"
        )


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """`path: old there, new here` for every leaf that differs, but for how it is launched and tracked."""
    if path in (
        "wandb",
        "output_dir",
        "trainer.workers",
        "trainer.log_every",
        "trainer.save_every",
        "trainer.keep",
    ):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            below = f"{path}.{key}" if path else key
            yield from differences(old.get(key), new.get(key), below)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{path}.{index}")
    elif old != new:
        yield f"{path}: {old} there, {new} here"


def environment() -> dict[str, Any]:
    """Versions, hardware and commit, for whoever reads the run later."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return {"packages": versions, "python": platform.python_version(), "device": device, "commit": _commit()}


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cloned(folder: Path) -> set[str]:
    path = folder / SUBCLONE
    if not path.is_file():
        return set()
    return {row["target"] for row in json.loads(path.read_text())["rows"] if row["kind"] != "fresh"}
