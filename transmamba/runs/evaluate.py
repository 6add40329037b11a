"""A finished model measured on a task, its teacher beside it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..core.batch import Batch
from ..core.preprocessing import PicturesAndText
from ..core.task import Pass
from ..core.text import TextOnly
from ..ecosystems.find import load_model, preprocessing_of
from ..errors import NoSplit, UserError
from ..evaluation.cost import HALF, autocast, find_device
from ..evaluation.measured import Measured
from ..evaluation.run import ModelRunner, measure
from ..subcloning.convert import as_teacher
from ..teachers.teacher import Teacher

Watch = Callable[[Iterator[Batch], str], Iterator[Batch]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Models and data, loaded and checked against each other.

    model:        as it is run, see `as_run`
    task, theirs: the data as the model and as the teacher sees them; one object where they see the same
    """

    model: nn.Module | Teacher
    teacher: Teacher | None
    task: Any
    theirs: Any
    data: Any
    source: str
    split: str
    passing: Pass
    device: torch.device
    precision: str

    def __str__(self) -> str:
        """Which model, which data, how many items, on what: a line for the user before it is measured."""
        beside = "" if self.teacher is None else f" and its teacher {self.teacher.source}"
        indices = getattr(self.task, "indices", None)
        items = "" if indices is None else f", {len(indices(self.split)):,} items"
        where = str(self.device)
        where += f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        precision = self.precision if self.precision in HALF else "float32"
        data = described(getattr(self.data, "data", self.data))
        return f"evaluating {self.source}{beside} on {data}: {self.split} split{items}; {where}, {precision}"

    def measure(self, watch: Watch | None = None) -> Measured:
        """One pass over the split; two where teacher and model see different pixels."""
        context = functools.partial(autocast, self.device, self.precision)
        kind: Literal["student", "teacher"] = "teacher" if isinstance(self.model, Teacher) else "student"
        mine = {"student": ModelRunner(self.model, self.device, context, kind=kind)}
        if self.teacher is None:
            return measure(self.task.evaluators(self.split), mine, self.passing, watch=watch)
        beside = {"teacher": ModelRunner(self.teacher, self.device, context, kind="teacher")}
        if self.theirs is self.task:
            return measure(self.task.evaluators(self.split), {**mine, **beside}, self.passing, watch=watch)
        measured = measure(self.task.evaluators(self.split), mine, self.passing, watch=watch)
        return measured.joined(measure(self.theirs.evaluators(self.split), beside, self.passing, watch=watch))

    def report(self, measured: Measured, page: Path) -> Path:
        """Writes what was measured as a page. Raises UserError where nothing can be written there."""
        from ..reporting.evaluation_page import write_evaluation
        from .folder import environment

        models = {"student": self.source}
        if self.teacher is not None:
            models["teacher"] = str(self.teacher.source)
        data = described(getattr(self.data, "data", self.data))
        return write_evaluation(
            page,
            measured,
            self.task.metrics,
            models=models,
            data=data,
            split=self.split,
            environment=environment(),
        )


def prepare(
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
) -> Evaluation:
    """Load what is to be measured.

    architecture, teacher_architecture: timm names, where the model or the teacher is a file of weights

    Raises UserError where models, data and options do not fit each other.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise UserError(f"{name} is {value}; write at least {least}")
    target = find_device(device)
    source = type(model).__name__ if isinstance(model, nn.Module) else str(model)
    if not isinstance(model, nn.Module):
        model = load_model(model, architecture)
    elif architecture is not None:
        raise UserError(f"architecture {architecture} goes with a file of weights, not a model in hand")
    if teacher is None and teacher_architecture is not None:
        raise UserError(f"teacher architecture {teacher_architecture}: name the teacher too, or leave it out")
    run, looks = as_run(model)
    try:
        built = theirs = task.build(looks)
        built.check(run, "model")
        if hasattr(built, "say_truncated"):  # a task of texts
            built.say_truncated(split)
    except NoSplit as error:
        if split != "test" or not task.validation:
            raise
        held_out = f"{error}, or measure on what is held out of train: --split validation"
        raise UserError(held_out) from error
    taught = None if teacher is None else as_teacher(teacher, teacher_architecture).to(target)
    if taught is not None:
        if getattr(built, "num_classes", None) and not taught.num_classes:
            raise UserError(
                f"teacher {taught.source} has no classes to measure it or the agreement by; leave it out"
            )
        if taught.preprocessing != built.preprocessing:
            theirs = task.build(taught.preprocessing)
            # both by both, so that both number the classes, and the words, alike
            for data, other, who in ((theirs, run, "model"), (built, taught, "teacher")):
                getattr(data, "check_apart", data.check)(other, who)
        theirs.check(taught, "teacher")
    elif all(getattr(evaluator, "pairwise", False) for evaluator in built.evaluators(split)):
        raise UserError(
            f"{source} alone: this data says nothing of one model; name a teacher to compare it with "
            "(--teacher)"
        )
    return Evaluation(
        model=run.to(target),
        teacher=taught,
        task=built,
        theirs=theirs,
        data=task,
        source=source,
        split=split,
        passing=Pass(batch_size=batch_size, workers=workers),
        device=target,
        precision=precision,
    )


def as_run(model: nn.Module) -> tuple[nn.Module | Teacher, Any]:
    """(What is run of a model, how it reads). Of transformers' own, a LLaVA is run as the student that it is
    trained as, its weights held once, and a language model as the teacher that it is read as."""
    looks = preprocessing_of(model)
    if hasattr(model, "run"):
        return model, looks
    if isinstance(looks, PicturesAndText):
        from ..students.hf_llava.model import LlavaModel

        return LlavaModel(model, getattr(looks.text, "library", None), looks), looks
    return (as_teacher(model) if isinstance(looks, TextOnly) else model), looks


def described(part: Any) -> str:
    """A part's name and those of its options that are not as if left out: `npz path=digits.npz`."""
    words = [str(getattr(type(part), "name", type(part).__name__))]
    for field in dataclasses.fields(part):
        value, usual = getattr(part, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            usual = field.default_factory()
        if value != usual:
            inside = dataclasses.is_dataclass(value) and not isinstance(value, type)
            words.append(f"{field.name}={'(' + described(value) + ')' if inside else value}")
    return " ".join(words)
