"""What users of Python call: convert, distill, evaluate, load_student, save_student, push_to_hub."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from torch import nn

from .core.preprocessing import Preprocessing
from .ecosystems import hub
from .ecosystems.find import load_model, save_model
from .ecosystems.folders import OPEN_CLIP_CONFIG, model_folder
from .errors import UserError
from .evaluation.cost import find_device
from .runs.evaluate import prepare
from .runs.recipe import Recipe
from .runs.run import load_recipe, run
from .subcloning.convert import build_student, convert, student_models
from .subcloning.place import check_place
from .teachers.teacher import Teacher

__all__ = [
    "build_student",
    "convert",
    "distill",
    "evaluate",
    "find_device",
    "load_student",
    "push_to_hub",
    "save_student",
    "student_models",
]

_WEIGHTS = ("model.safetensors", "open_clip_model.safetensors", "model.safetensors.index.json")


def distill(
    recipe: Recipe | str | Path,
    *overrides: str,
    overwrite: bool = False,
    check_data: bool = True,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Run a recipe (or its YAML file with `a.b=c` overrides) and return what RUN/results.json holds.

    check_data: look through the evaluation splits before training
    stop:       an event that asks the run to save and stop, for callers in another thread than the main one
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    elif overrides:
        raise UserError(f"{overrides[0]}: the recipe is made already; overrides go with its file")
    return run(recipe, overwrite=overwrite, check_data=check_data, stop=stop)


def load_student(path: str | Path) -> nn.Module:
    """The student in RUN or STUDENT, in evaluation mode: a timm model, or an open_clip model (of a student
    `clip`). Raises UserError when there is none."""
    if model_folder(path) is None:
        raise UserError(
            f"{path}: no student there; write a run folder or a folder with config.json or {OPEN_CLIP_CONFIG}"
        )
    return load_model(path)


def evaluate(
    model: nn.Module | str | Path,
    task: Any,
    *,
    teacher: nn.Module | Teacher | str | Path | None = None,
    architecture: str | None = None,
    teacher_architecture: str | None = None,
    split: str = "test",
    batch_size: int = 256,
    workers: int = 0,
    device: str | None = None,
    precision: str = "no",
) -> dict[str, Any]:
    """Metrics of a model on a task (a registered task's configuration), and of its teacher and their
    agreement.

    architecture, teacher_architecture: timm names, where the model or the teacher is a file of weights

    Returns {"student": {...}} or, with a teacher, {"student", "teacher", "agreement", "difference"}: the last
    is student against teacher by metric, with paired intervals (`evaluation.compare.Difference`).
    """
    prepared = prepare(
        model,
        task,
        teacher=teacher,
        architecture=architecture,
        teacher_architecture=teacher_architecture,
        split=split,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
    )
    return prepared.measure().results()


def push_to_hub(path: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload RUN/student (or STUDENT) to the Hugging Face Hub; returns the commit's address.

    Raises UserError when the folder holds no student or the Hub refuses.
    """
    from huggingface_hub import HfApi

    folder = model_folder(path)
    if folder is None or not any((folder / name).is_file() for name in _WEIGHTS):
        raise UserError(
            f"{path}: no student there; write a run folder or a folder with {' or '.join(_WEIGHTS[:2])}"
        )
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="Upload student")
    except (
        Exception
    ) as error:  # the HTTP library below, and so its errors, changes with the Hub client's version
        raise UserError(f"upload of {folder} to {repo_id!r} failed: {hub.explain(error)}") from error
    return str(done)


def save_student(
    student: nn.Module,
    folder: str | Path,
    preprocessing: Preprocessing | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a student as its library does; `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it,
    and a CLIP `open_clip.create_model_and_transforms("local-dir:FOLDER")`, after `import transmamba`.

    Raises UserError where the folder is not empty; with `overwrite`, where what is there is no model.
    """
    check_place(Path(folder).expanduser(), overwrite)
    save_model(student, Path(folder), preprocessing)
