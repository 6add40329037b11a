"""Which of a teacher's attention layers a hybrid keeps, found out from its aligned student without any."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from torch import nn

from ..config.file import read_yaml
from ..config.registry import TASKS, TEACHERS
from ..core.batch import Batch
from ..ecosystems.find import load_model
from ..errors import UserError
from ..evaluation.cost import HALF, autocast, find_device
from ..students.hybrid_lm.model import HybridStudent
from ..students.hybrid_lm.selected import FORMAT
from ..students.hybrid_lm.shape import teacher_shape
from ..students.hybrid_lm.swap import Swap
from ..subcloning.convert import as_teacher
from ..tasks.language import Language, LanguageConfig
from ..teachers.teacher import Teacher
from .evaluate import described
from .folder import CONFIG
from .layer_order import Method, Order, Score, ordered
from .layer_scores import Scores, Watch
from .saved import has_part, run_of, saved_part


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was found, by the teacher's own numbers of its layers.

    none:    without any attention; single: with each layer's alone
    order:   the layers, best first, each beside those before it; nested: the scores of 1, 2, ... of them
    keep:    the numbers of layers that were asked for
    about:   student, teacher, data and options
    """

    none: Score
    single: Mapping[int, Score]
    order: tuple[int, ...]
    nested: tuple[Score, ...]
    keep: tuple[int, ...]
    about: Mapping[str, Any]

    @property
    def chosen(self) -> dict[int, list[int]]:
        """The layers of each number, in their own order."""
        return {count: sorted(self.order[:count]) for count in self.keep}

    def as_dict(self) -> dict[str, Any]:
        """What a recipe's `student.attention_layers: {file: ..., keep: ...}` reads, and what it came from."""
        weight = self.about["options"]["recall_weight"]
        start = self.none.loss(weight)
        return {
            "format": FORMAT,
            **self.about,
            "chosen": {str(count): layers for count, layers in self.chosen.items()},
            "order": list(self.order),
            "none": asdict(self.none),
            "nested": [
                {"layer": layer, **asdict(score)}
                for layer, score in zip(self.order, self.nested, strict=True)
            ],
            "single": {
                str(layer): {"gain": start - score.loss(weight), **asdict(score)}
                for layer, score in self.single.items()
            },
        }

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")


def select_layers(
    student: nn.Module | str | Path,
    keep: Sequence[int],
    *,
    teacher: nn.Module | Teacher | str | Path | None = None,
    task: Any = None,
    split: str | None = None,
    tokens: int = 65536,
    recall_weight: float = 1.0,
    method: Method = "greedy",
    batch_size: int = 8,
    device: str | None = None,
    precision: str = "no",
    watch: Watch = lambda pairs, title: pairs,
) -> Selection:
    """Order the teacher's attention layers by what each does for its student without any: by KL to the
    teacher on text, plus `recall_weight` times that on the second half of rows that repeat themselves
    (runs/layer_order.py has the formulas).

    student: RUN, STUDENT or a module: a `hybrid_lm` without attention whose mixers were aligned
    keep:    numbers of layers; the largest is how many are put in order. `greedy` measures some n * keep
        students of n layers, `single` n + keep
    teacher, task: left out, those of the run that `student` is
    split:   of the texts; left out, the one that training is watched on
    tokens:  of text that are read, in whole rows, and about as many of repeated spans
    batch_size: rows at a time

    Raises UserError where these do not fit each other.
    """
    _check(keep, tokens, batch_size, recall_weight, method, precision)
    where = find_device(device)
    source = type(student).__name__ if isinstance(student, nn.Module) else str(student)
    run = None if isinstance(student, nn.Module) else run_of(student)
    taught = _teacher(teacher, run, source).to(where)
    task = _task(task, run, source)
    model = student if isinstance(student, nn.Module) else load_model(student)
    if not isinstance(model, HybridStudent):
        raise UserError(f"{source} is a {type(model).__name__}; layers are selected of a hybrid_lm")
    data: Language = task.build(taught.preprocessing)
    for checked, who in ((taught, "teacher"), (model, "student")):
        data.check(checked, who)
    swap = Swap(model.to(where), taught.view)
    if (most := max(keep)) >= len(swap.layers):
        raise UserError(f"keep has {most}, but the student has {len(swap.layers)} layers; write fewer")
    split = split or data.watched
    scores = Scores(
        swap,
        taught,
        _texts(data, split, tokens, batch_size),
        recall=recall_weight > 0,
        device=where,
        autocast=functools.partial(autocast, where, precision),
        watch=watch,
    )
    found = ordered(scores, range(len(swap.layers)), most, recall_weight, method)
    options = dict(method=method, recall_weight=recall_weight, tokens=tokens, precision=precision)
    about = {
        "student": source,
        "teacher": {"source": taught.source, **teacher_shape(taught.view)},
        "data": {"task": described(task), "split": split, "words": scores.words},
        "options": options,
    }
    return _by_teacher(found, swap, tuple(sorted(set(keep))), about)


def _by_teacher(found: Order, swap: Swap, keep: tuple[int, ...], about: Mapping[str, Any]) -> Selection:
    return Selection(
        none=found.none,
        single={swap.layers[k]: score for k, score in found.single.items()},
        order=tuple(swap.layers[k] for k in found.order),
        nested=found.nested,
        keep=keep,
        about=about,
    )


def _texts(data: Language, split: str, tokens: int, batch_size: int) -> list[Batch]:
    """Rows of a split, drawn alike each time. Raises UserError where it has none."""
    rows = -(-tokens // data.config.block)
    found = list(data.drawn(split, rows, batch_size))
    if not found:
        raise UserError(f"the {split} split has no rows; name another")
    return found


def _check(
    keep: Sequence[int], tokens: int, batch_size: int, recall_weight: float, method: str, precision: str
) -> None:
    if not keep or min(keep) < 1:
        raise UserError(f"keep is {list(keep)}; write numbers of layers, each at least 1, such as 4,8")
    for name, value in (("tokens", tokens), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}; write at least 1")
    if not 0 <= recall_weight < float("inf"):
        raise UserError(f"recall_weight is {recall_weight}; write a number, 0 for text alone")
    if method not in get_args(Method):
        raise UserError(f"method is {method!r}; write {' or '.join(get_args(Method))}")
    if precision not in ("no", *HALF):
        raise UserError(f"precision is {precision!r}; write no, bf16 or fp16")


def _teacher(given: Any, run: Path | None, source: str) -> Teacher:
    """The one that is given, or the run's own; folded where the run did so."""
    if given is None and (run is None or not has_part(run, "teacher")):
        raise UserError(f"{source}: no run there that says its teacher; name the teacher")
    teacher: Teacher = saved_part(run, "teacher", TEACHERS).build() if given is None else as_teacher(given)  # type: ignore[arg-type]
    init = None if run is None else read_yaml(run / CONFIG).get("init")
    return teacher.fold() if isinstance(init, dict) and init.get("fold") else teacher


def _task(given: Any, run: Path | None, source: str) -> LanguageConfig:
    if given is None and run is None:
        raise UserError(f"{source}: no run there that says its data; name the data")
    task = given if given is not None else saved_part(run, "task", TASKS)  # type: ignore[arg-type]
    if not isinstance(task, LanguageConfig):
        raise UserError(f"layers are selected on texts (the task language), not on {described(task)}")
    return task
