"""What users of Python call: convert, distill, evaluate, load_student, push_to_hub."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import load as configs
from .config.registry import STUDENTS
from .core.preprocessing import Preprocessing
from .ecosystems.folders import model_folder, read_model_config
from .errors import UserError, suggest
from .evaluation.classification import agreement, autocast, predict, summarise
from .runs.recipe import Recipe
from .runs.run import preprocessing_of, run
from .students.student import save_model
from .subcloning.report import Report
from .subcloning.subclone import SubcloneConfig, first_images, subclone
from .teachers.teacher import Teacher, adapt_teacher, load_teacher

# registered students that are any classifier of a library: fine-tuned, not converted to
_TRAINED_AS_THEY_ARE = ("timm", "hf_vit")


def convert(
    model: nn.Module | Teacher | str | Path,
    student: str | nn.Module = "vim",
    *,
    init: SubcloneConfig | None = None,
    calibration: list[Tensor] | None = None,
    num_classes: int | None = None,
    **kwargs: Any,
) -> tuple[nn.Module, Report]:
    """A Mamba student that starts from the teacher's weights, without training, and the report of what it
    took.

    model:   a timm or transformers ViT/DeiT you hold, or its name, id or folder
    student: `vim` or `ssd_vit` for one of the teacher's own shape, a timm name of ours, or a student module
    init:    how it starts; left out: every layer from the teacher, and the importance that `calibration`
        allows. Layers left open (`init.layers` None) are all, for nothing trains the others
    calibration: image batches (B, C, H, W), normalised for the teacher. The first `init.calibration_images`
        of them rank coordinates by activation (without any, evenly spaced ones are kept) and serve
        `init.average`
    kwargs:  for the student's constructor (embed_dim, depth, gate_bias ...)

    Raises UserError for an unknown name or shapes that cannot meet.
    """
    teacher = _as_teacher(model)
    if init is not None and not isinstance(init, SubcloneConfig):
        raise UserError(f"init is {type(init).__name__}; write a transmamba.SubcloneConfig(...)")
    init = init or SubcloneConfig(importance="activation" if calibration else "uniform")
    if init.layers is None:
        init = dataclasses.replace(init, layers="all")
    if init.fold:
        teacher.fold()  # first: a student of the teacher's shape has its norms too
    if isinstance(student, str):
        student = build_student(student, teacher, num_classes, **kwargs)
    elif kwargs or num_classes is not None:
        given = ", ".join([*kwargs, *(["num_classes"] if num_classes is not None else [])])
        raise UserError(f"{given}: the student is made already; give them to its constructor")
    ranked = first_images(calibration or [], init.calibration_images)
    report, _ = subclone(student, teacher, init, ranked)  # type: ignore[arg-type]
    if hasattr(student, "pretrained_cfg"):
        carried = {**student.pretrained_cfg, **teacher.preprocessing.to_pretrained_cfg()}  # type: ignore[dict-item]
        student.pretrained_cfg = carried  # type: ignore[assignment]
        student.default_cfg = carried  # type: ignore[assignment]
    return student.eval(), report


def build_student(name: str, teacher: Teacher, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
    """An untrained student for this teacher's images: a registered kind, or a timm name of ours."""
    if num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; write a number of at least 1")
    size = dict(
        num_classes=teacher.num_classes if num_classes is None else num_classes,
        input_size=teacher.preprocessing.input_size,
        view=teacher.view,
    )
    if name in _TRAINED_AS_THEY_ARE:
        raise UserError(
            f"student {name!r} takes no teacher's weights; write vim or ssd_vit, or a timm name of ours"
        )
    if name in STUDENTS:
        part = STUDENTS[name](kwargs=kwargs)
    elif name in student_models():
        kind = "ssd_vit" if name.startswith("ssd_vit") else "vim"
        part = STUDENTS[kind](model=name, kwargs=kwargs)
    else:
        raise UserError(f"unknown student {name!r}{suggest(name, [*student_models(), 'vim', 'ssd_vit'])}")
    return part.build(**size)


def student_models() -> list[str]:
    """The timm names of our students."""
    import timm

    return [*timm.list_models("vim_*"), *timm.list_models("ssd_vit_*")]


def distill(recipe: Recipe | str | Path, *overrides: str, overwrite: bool = False) -> dict[str, Any]:
    """Run a recipe (or its YAML file with `a.b=c` overrides) and return what RUN/results.json holds."""
    if not isinstance(recipe, Recipe):
        recipe = configs.load(Recipe, recipe, overrides)
    return run(recipe, overwrite=overwrite)


def load_student(path: str | Path) -> nn.Module:
    """The student in RUN or STUDENT, in evaluation mode. Raises UserError when there is none."""
    from .teachers.timm_vit import create_timm

    if model_folder(path) is None:
        raise UserError(f"{path}: no student there; write a run folder or a folder with config.json")
    return create_timm(str(path), pretrained=True).eval()


def evaluate(
    model: nn.Module | str | Path,
    task: Any,
    *,
    teacher: nn.Module | Teacher | str | Path | None = None,
    split: str = "test",
    batch_size: int = 256,
    workers: int = 0,
    device: str | None = None,
    precision: str = "no",
) -> dict[str, Any]:
    """Metrics of a model on a task (a registered task's configuration), and of its teacher and their
    agreement.

    Returns {"student": {...}} or, with a teacher, {"student", "teacher", "agreement"}; percent but for nll.
    """
    target = find_device(device)
    if not isinstance(model, nn.Module):
        model = _load_any(model)
    built = task.build(preprocessing_of(model))
    labels = getattr(getattr(model, "config", None), "num_labels", built.num_classes)  # Hugging Face's name
    built.check_classes(getattr(model, "num_classes", labels), "model")
    guide = None if teacher is None else _as_teacher(teacher)
    if guide is not None:
        built.check_classes(guide.num_classes, "teacher")
    context = functools.partial(autocast, target, precision)

    def batches(of: Any) -> Any:
        return of.eval_batches(split, batch_size=batch_size, workers=workers)

    made = predict(model.to(target), batches(built), target, context)
    results: dict[str, Any] = {"student": summarise(made, sum(p.numel() for p in model.parameters()))}
    if guide is not None:
        theirs = built if guide.preprocessing == built.preprocessing else task.build(guide.preprocessing)
        predicted = predict(guide.to(target), batches(theirs), target, context)
        results["teacher"] = summarise(predicted, guide.num_params)
        results["agreement"] = agreement(predicted, made)
    return results


def push_to_hub(path: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload RUN/student (or STUDENT) to the Hugging Face Hub; returns the commit's address.

    Raises UserError when the folder holds no student or the Hub refuses.
    """
    from huggingface_hub import HfApi

    folder = model_folder(path)
    if folder is None or not (folder / "model.safetensors").is_file():
        raise UserError(f"{path}: no student there; write a run folder or a folder with model.safetensors")
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="Upload student")
    except (
        Exception
    ) as error:  # the HTTP library below, and so its errors, changes with the Hub client's version
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"upload of {folder} to {repo_id!r} failed: {first}") from error
    return str(done)


def save_student(student: nn.Module, folder: str | Path, preprocessing: Preprocessing | None = None) -> None:
    """Write a student as timm does; `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it."""
    save_model(student, Path(folder), preprocessing)


def find_device(name: str | None) -> torch.device:
    """`name`, or a GPU where there is one. Raises UserError for one that this machine lacks."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # an unknown kind, or one that this machine lacks
        raise UserError(f"device {name!r} cannot be used here; write cuda or cpu") from error


def _as_teacher(model: nn.Module | Teacher | str | Path) -> Teacher:
    if isinstance(model, Teacher):
        return model
    return adapt_teacher(model) if isinstance(model, nn.Module) else load_teacher(model)


def _load_any(source: str | Path) -> nn.Module:
    from .teachers.hf_vit import HuggingFaceVit, load_hugging_face
    from .teachers.timm_vit import create_timm

    folder = model_folder(source)
    if folder is not None and "architecture" not in read_model_config(folder):
        return load_hugging_face(str(folder))
    if folder is None and (named := HuggingFaceVit.recognise(str(source))):
        return load_hugging_face(named.model)
    return create_timm(str(source), pretrained=True).eval()
