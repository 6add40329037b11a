"""A model in hand, and the Mamba student that starts from its weights, without training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import load as configs
from ..config.registry import STUDENTS
from ..core.batch import Batch, image_batch
from ..core.tower import Student, StudentSpec
from ..ecosystems.texts import beside_named
from ..ecosystems.timm import say_whose
from ..errors import UserError, WrongTeacher, suggest
from ..teachers.load import adapt_teacher, load_teacher
from ..teachers.teacher import Teacher
from .report import Report
from .subclone import SubcloneConfig, first_items, subclone


def convert(
    model: nn.Module | Teacher | str | Path,
    student: str | nn.Module = "vim",
    *,
    init: SubcloneConfig | None = None,
    calibration: Iterable[Batch | Tensor] | None = None,
    num_classes: int | None = None,
    **kwargs: Any,
) -> tuple[nn.Module, Report]:
    """A Mamba student that starts from the teacher's weights, without training, and the report of what it
    took. The teacher is left as it is.

    model:   a timm or transformers ViT/DeiT or a CLIP you hold, or its name, id or folder
    student: `vim` or `ssd_vit` for one of the teacher's own shape, a timm name of ours, `clip` for both
        towers of a CLIP or SigLIP, `hybrid_lm` or `window_lm` for a language model, `llava` for a LLaVA, or a
        student module
    init:    how it starts; left out: every layer from the teacher, and the importance that `calibration`
        allows
    calibration: batches, or image tensors (B, C, H, W), as the teacher reads them. The first
        `init.calibration_images` items rank coordinates by activation (without any, evenly spaced ones are
        kept) and serve `init.average`
    num_classes: of the student; left out: the teacher's, and none (features alone) where it has no head
    kwargs:  for the student's constructor (embed_dim, depth, gate_bias ...); of a clip its `image` and
        `text`, as a recipe's student has them: image={"kind": "ssd_vit", "kwargs": {"depth": 6}}

    Raises UserError for an unknown name or shapes that cannot meet.
    """
    teacher = as_teacher(model)
    if init is not None and not isinstance(init, SubcloneConfig):
        raise UserError(f"init is {type(init).__name__}; write a transmamba.SubcloneConfig(...)")
    batches = as_batches(calibration)
    _check_images(batches, teacher)
    init = init or SubcloneConfig(importance="activation" if batches else "uniform")
    if init.fold:
        teacher = teacher.fold()  # first: a student of the teacher's shape has its norms too
    if isinstance(student, str):
        if not init.layers:
            _check_from_scratch(student, kwargs)
        student = build_student(student, teacher, num_classes, **kwargs)
    elif kwargs or num_classes is not None:
        given = ", ".join([*kwargs, *(["num_classes"] if num_classes is not None else [])])
        raise UserError(f"{given}: the student is made already; give them to its constructor")
    if not isinstance(student, Student):
        raise UserError(
            f"{type(student).__name__} is no Mamba student; write vim, ssd_vit, clip, or a timm name of ours"
        )
    report, _ = subclone(student, teacher, init, first_items(batches, init.calibration_images))
    carry(student, teacher)
    return student.eval(), report


def carry(student: Any, teacher: Teacher) -> None:
    """What a student has of its teacher beside weights, for whoever saves it: what its images look like, the
    names of the classes it shares, and whose work it is derived from (licence, repository)."""
    if hasattr(student, "carry"):  # one that keeps it elsewhere than timm's do
        student.carry(teacher.preprocessing, teacher.licence, teacher.base_model)
    if hasattr(student, "carry_texts"):
        student.carry_texts(beside_named(teacher.source))
    if not hasattr(student, "pretrained_cfg"):
        return
    carried = {**student.pretrained_cfg, **teacher.preprocessing.to_pretrained_cfg()}
    if teacher.class_names is not None and student.num_classes == teacher.num_classes:
        carried |= {"num_classes": student.num_classes, "label_names": list(teacher.class_names)}
    student.pretrained_cfg = student.default_cfg = carried
    say_whose(student, teacher.licence, teacher.base_model)


def build_student(name: str, teacher: Teacher, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
    """An untrained student for this teacher's images or texts: a registered kind, or a timm name of ours. A
    language model has its teacher's precision."""
    if num_classes is not None and num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; write a number of at least 1")
    classes = teacher.num_classes if num_classes is None else num_classes
    spec = StudentSpec(
        view=teacher.view,
        preprocessing=teacher.preprocessing,
        num_classes=classes,
        dtype=teacher.view.tensor.dtype,
    )
    if _takes_no_weights(name):
        raise UserError(
            f"student {name!r} takes no weights of a teacher; write init: null in its recipe, or convert to "
            f"a timm name of ours or one of {', '.join(kinds_of_students())}"
        )
    kind = "ssd_vit" if name.startswith("ssd_vit_") else "vim"
    try:
        if name in STUDENTS:
            return _configured(name, num_classes, kwargs).build(spec)
        if name in student_models():
            return STUDENTS[kind](model=name, kwargs=kwargs).build(spec)
    except WrongTeacher as error:
        raise error.of(teacher.source) from error
    except UserError:
        raise
    except ValueError as error:  # what a configuration says of its own values
        raise UserError(str(error)) from error
    raise UserError(f"unknown student {name!r}{suggest(name, [*student_models(), *kinds_of_students()])}")


def _configured(name: str, num_classes: int | None, options: Mapping[str, Any]) -> Any:
    """A registered student's configuration: options are its constructor's where it has `kwargs`, its own
    where it has none. Raises UserError (ConfigError) naming those that are wrong."""
    fields = {field.name for field in dataclasses.fields(STUDENTS[name])}
    if "kwargs" in fields:
        return STUDENTS[name](kwargs=dict(options))
    if num_classes is not None:
        raise UserError(f"num_classes is {num_classes}, but a {name} tells no classes apart; leave it out")
    return configs.parse(STUDENTS[name], configs.dump(dict(options)), f"student {name}")


def _check_from_scratch(name: str, options: Mapping[str, Any]) -> None:
    """Raises UserError for what of a registered student cannot be where no weights are taken."""
    if name in STUDENTS and hasattr(STUDENTS[name], "problems_from_scratch"):
        problems = _configured(name, None, options).problems_from_scratch()
        if problems:
            raise UserError("; ".join(problems))


def kinds_of_students() -> list[str]:
    """The registered students that start from a teacher's weights."""
    return [name for name in STUDENTS if not _takes_no_weights(name)]


def _takes_no_weights(name: str) -> bool:
    """Whether a student is trained with the weights that it has (`as_it_is`) or draws (`begins_anew`)."""
    flags = ("as_it_is", "begins_anew")
    return name in STUDENTS and any(getattr(STUDENTS[name], flag, False) for flag in flags)


def student_models() -> list[str]:
    """The timm names of our students, without those that say no size of their own."""
    import timm

    STUDENTS.names()  # their files register them in timm
    ours = [*timm.list_models("vim_*"), *timm.list_models("ssd_vit_*")]
    return [name for name in ours if not name.endswith("_shaped")]


def as_teacher(model: nn.Module | Teacher | str | Path, architecture: str | None = None) -> Teacher:
    """A teacher, of whatever names or holds one; `architecture` (a timm name) is that of a file of
    weights."""
    if not isinstance(model, Teacher | nn.Module):
        return load_teacher(model, architecture)
    if architecture is not None:
        raise UserError(f"architecture {architecture} goes with a file of weights, not a model in hand")
    return model if isinstance(model, Teacher) else adapt_teacher(model)


def _check_images(batches: Sequence[Batch], teacher: Teacher) -> None:
    """Raises UserError for calibration images that the teacher would not be given."""
    wanted = getattr(teacher.preprocessing, "input_size", None)
    if wanted is None:
        return  # it reads no images, which whoever builds an image student says
    for batch in batches:
        found = tuple(batch.inputs["image"].shape[1:]) if "image" in batch.inputs else wanted
        if found != wanted:
            raise UserError(
                f"calibration holds images of {found} (channels, height, width); this teacher reads {wanted}"
            )


def as_batches(items: Iterable[Batch | Tensor] | None) -> list[Batch]:
    """Batches, also of image tensors (B, C, H, W). Raises UserError for one tensor instead of several."""
    if isinstance(items, Tensor | Batch):
        raise UserError(f"calibration is a {type(items).__name__}; write a list of them, such as [images]")
    batches = []
    for item in items or ():
        if isinstance(item, Tensor):
            item = image_batch(item, torch.zeros(len(item), dtype=torch.int64))
        if not isinstance(item, Batch):
            raise UserError(f"calibration holds a {type(item).__name__}; write image tensors, or batches")
        batches.append(item)
    return batches
