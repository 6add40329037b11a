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
from ..config.registry import TEACHERS
from ..ecosystems.find import load_model
from ..errors import UserError
from ..evaluation.cost import HALF, autocast, find_device
from ..students.hybrid_lm.selected import FORMAT
from ..students.hybrid_lm.swap import Swap, Swappable
from ..subcloning.convert import as_teacher
from ..teachers.teacher import Teacher
from .evaluate import described
from .folder import CONFIG
from .layer_data import reading_of, task_for
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
    tokens: int | None = None,
    questions: int | None = None,
    recall_weight: float | None = None,
    method: Method = "greedy",
    batch_size: int = 8,
    device: str | None = None,
    precision: str = "no",
    watch: Watch = lambda pairs, title: pairs,
) -> Selection:
    """Order the teacher's attention layers by what each does for its student without any: by KL to the
    teacher on text, plus `recall_weight` times that on the second half of rows that repeat themselves, or by
    KL on the answers to questions (runs/layer_order.py has the formulas).

    student: RUN, STUDENT or a module: a `hybrid_lm`, or a `llava`'s decoder, without attention whose mixers
        were aligned
    keep:    numbers of layers; the largest is how many are put in order. `greedy` measures some n * keep
        students of n layers, `single` n + keep
    teacher, task: left out, those of the run that `student` is
    split:   of the data; left out, the one that training is watched on
    tokens:  of the task `language`: how many are read, in whole rows, and about as many of repeated spans;
        65,536 if left out
    questions: of the task `questions`: how many are read, with their pictures and answers; 512 if left out
    recall_weight: 1 if left out; questions have no spans to repeat, theirs is 0
    batch_size: rows at a time

    Raises UserError where these do not fit each other.
    """
    amounts = {"tokens": tokens, "questions": questions}
    _check(keep, {**amounts, "batch_size": batch_size}, recall_weight, method, precision)
    where = find_device(device)
    source = type(student).__name__ if isinstance(student, nn.Module) else str(student)
    run = None if isinstance(student, nn.Module) else run_of(student)
    taught = _teacher(teacher, run, source).to(where)
    task = task_for(task, run, source)
    reading = reading_of(task, amounts, recall_weight)
    model = student if isinstance(student, nn.Module) else load_model(student)
    if not isinstance(model, Swappable):
        raise UserError(
            f"{source} is a {type(model).__name__}; layers are selected of a hybrid_lm or a llava"
        )
    data = task.build(taught.preprocessing)
    for checked, who in ((taught, "teacher"), (model, "student")):
        data.check(checked, who)
    swap = model.to(where).swap(taught.view)
    if (most := max(keep)) >= len(swap.layers):
        raise UserError(f"keep has {most}, but the student has {len(swap.layers)} layers; write fewer")
    split = split or data.watched
    scores = Scores(
        swap,
        taught,
        reading.batches(data, split, batch_size),
        recall=reading.recall_weight > 0,
        what=reading.kind.what,
        device=where,
        autocast=functools.partial(autocast, where, precision),
        watch=watch,
    )
    found = ordered(scores, range(len(swap.layers)), most, reading.recall_weight, method)
    options = dict(method=method, **reading.options, precision=precision)
    about = {
        "student": source,
        "teacher": {"source": taught.source, **swap.shape},
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


def _check(
    keep: Sequence[int],
    counts: Mapping[str, int | None],
    recall_weight: float | None,
    method: str,
    precision: str,
) -> None:
    if not keep or min(keep) < 1:
        raise UserError(f"keep is {list(keep)}; write numbers of layers, each at least 1, such as 4,8")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; write at least 1")
    if recall_weight is not None and not 0 <= recall_weight < float("inf"):
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
