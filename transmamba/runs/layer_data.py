"""What is read of a task's data to put layers in order: texts, or questions with their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.registry import TASKS
from ..core.batch import Batch
from ..errors import UserError
from ..tasks.language import LanguageConfig
from ..tasks.questions import QuestionsConfig
from .evaluate import described
from .saved import saved_part


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Of one task's data.

    amount:  the option that says how much is read; usual: where it is left out
    what:    what is predicted
    repeats: whether spans of it are repeated
    rows:    how many rows of a built task so much is
    """

    amount: str
    usual: int
    what: str
    repeats: bool
    rows: Callable[[Any, int], int]


KINDS: Mapping[type, Kind] = {
    LanguageConfig: Kind(
        amount="tokens",
        usual=65536,
        what="text",
        repeats=True,
        rows=lambda data, tokens: -(-tokens // data.config.block),
    ),
    # an answer's words depend on its question: a span of them twice asks nothing
    QuestionsConfig: Kind(
        amount="questions", usual=512, what="answers", repeats=False, rows=lambda data, questions: questions
    ),
}


@dataclass(frozen=True)
class Reading:
    """So much of a task's data, and how spans that come again weigh; 0 where there are none."""

    kind: Kind
    amount: int
    recall_weight: float

    @property
    def options(self) -> dict[str, Any]:
        return {"recall_weight": self.recall_weight, self.kind.amount: self.amount}

    def batches(self, data: Any, split: str, batch_size: int) -> list[Batch]:
        """Rows of a split of the built task, drawn alike each time. Raises UserError where it has none."""
        found = list(data.drawn(split, self.kind.rows(data, self.amount), batch_size))
        if not found:
            raise UserError(f"the {split} split has nothing to read; name another")
        return found


def reading_of(task: Any, amounts: Mapping[str, int | None], recall_weight: float | None) -> Reading:
    """amounts: by option, None where it is left out. Raises UserError for what is not of this task."""
    kind = KINDS[type(task)]
    for name, value in amounts.items():
        if value is not None and name != kind.amount:
            raise UserError(
                f"{name} is {value}, but data of the task {type(task).name} are counted in {kind.amount}; "
                f"write {kind.amount} instead"
            )
    if not kind.repeats and recall_weight:
        raise UserError(
            f"recall_weight is {recall_weight:g}, but spans are repeated of texts alone, not of the task "
            f"{type(task).name}; leave it out"
        )
    usual = 1.0 if kind.repeats else 0.0
    asked = amounts[kind.amount]
    weight = usual if recall_weight is None else float(recall_weight)
    return Reading(kind, kind.usual if asked is None else asked, weight)


def task_for(given: Any, run: Path | None, source: str) -> Any:
    """The one that is given, or the run's own. Raises UserError for one whose data cannot be read so."""
    if given is None and run is None:
        raise UserError(f"{source}: no run there that says its data; name the data")
    task = given if given is not None else saved_part(run, "task", TASKS)  # type: ignore[arg-type]
    if type(task) not in KINDS:
        raise UserError(
            "layers are selected on texts or on questions (the tasks language and questions), not on "
            f"{described(task)}"
        )
    return task
