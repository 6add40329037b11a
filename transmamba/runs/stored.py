"""The store of a recipe's teacher: found, or written, before anything is trained; then in every batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..core.batch import Batch
from ..core.task import Steps, Task
from ..data.stream import train_stream
from ..errors import UserError
from ..reporting.progress import Display
from ..teachers.fingerprint import fingerprint
from ..teachers.store_files import Store
from ..teachers.stored import Storable, StoredBatches, StoredTeacher
from ..teachers.teacher import Teacher
from ..training.stage import TrainerConfig
from .folder import differences
from .store_writing import Writing

_NAMED = 3


def with_store(
    teacher: Teacher,
    task: Task,
    trainer: TrainerConfig,
    accelerator: Any,
    *,
    folded: bool = False,
    quiet: bool = False,
    writes: bool = True,
) -> Teacher:
    """A stored teacher that answers from its store, which is written first as far as it is missing, by all
    processes together; any other teacher as it is.

    folded: whether the teacher will be, whose token sequences are then others
    writes: or, without, only whether it could be stored

    Raises UserError for a store of something else, for a damaged one, and for a task whose batches cannot be
    looked up.
    """
    if not isinstance(teacher, StoredTeacher):
        return teacher
    if folded and teacher.config.hidden:
        raise UserError(
            "init.fold changes the tokens that teacher.hidden stores; write init.fold=false, or leave "
            "teacher.hidden out"
        )
    source, folder = _source(task, teacher), Path(teacher.config.folder).expanduser()
    _refuse_mixing(task, source)
    if not writes:
        return teacher
    wanted = {
        "views": teacher.config.views,
        "dtype": teacher.config.dtype,
        "num_items": task.num_train,
        "identity": _identity(teacher, source, trainer.precision),
    }
    display = Display(quiet=quiet or not accelerator.is_main_process)
    store = Store.open(folder)
    accelerator.wait_for_everyone()  # all have seen the same, before one begins it
    if store is not None:
        _refuse_another(store, wanted)
        _check(store, accelerator, display)
    if store is None or store.missing():
        writing = Writing(teacher, source, folder, wanted, accelerator, trainer, display)
        store = writing.store(lambda found: _refuse_another(found, wanted))
    return teacher.with_store(store)


def train_batches(task: Task, teacher: Teacher | None, steps: Steps) -> Iterator[Batch]:
    """The task's, with the teacher's rows where it has a store."""
    if not isinstance(teacher, StoredTeacher) or teacher.store is None:
        return task.train_batches(steps)
    source = StoredBatches(_source(task, teacher), teacher.store)
    return train_stream(source, task.num_train, steps)


def _source(task: Any, teacher: StoredTeacher) -> Storable:
    """What makes the batches that are stored, and trained on."""
    if not hasattr(task, "train_source"):
        raise UserError(
            f"{type(task).__name__} cannot tell its training items apart, as a stored teacher needs; write "
            "the teacher itself in place of stored, or give the task `train_source` (core.task.Task)"
        )
    source: Storable = task.train_source(teacher.config.seed)
    return source


def _refuse_mixing(task: Task, source: Storable) -> None:
    """Raises UserError where a batch is changed after it was made: of that nothing is stored."""
    few = source.batch(np.array([[0, position] for position in range(min(2, task.num_train))]))
    if task.change(few, 0) is not few:
        raise UserError(
            "the task mixes its batches (mixup, cutmix), and of mixed images a store holds nothing; write "
            "task.mixup=0 and task.cutmix=0, or the teacher itself in place of stored"
        )


def _identity(teacher: StoredTeacher, source: Storable, precision: str) -> dict[str, Any]:
    """Everything that a stored row depends on."""
    found = {
        "teacher": fingerprint(teacher.view),
        "hidden": dict(teacher.config.hidden),
        "precision": precision,
        **source.identity(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _refuse_another(store: Store, wanted: dict[str, Any]) -> None:
    """Raises UserError for a store that is not what would be written now."""
    there = store.contents
    changes = list(differences({name: getattr(there, name) for name in wanted}, wanted))
    if changes:
        shown = "; ".join(change.removeprefix("identity.") for change in changes[:_NAMED])
        more = f" and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        raise UserError(
            f"store {str(store.folder)!r}, of teacher {there.source}, is stale ({shown}{more}); write "
            "another teacher.folder, or remove this one to have it written again"
        )


def _check(store: Store, accelerator: Any, display: Display) -> None:
    """Each process reads its share of the shards that are there. Raises UserError for a damaged one."""
    missing = set(store.missing())
    mine = range(accelerator.process_index, store.num_shards, accelerator.num_processes)
    there = [shard for shard in mine if shard not in missing]
    for shard in display.watch(there, "checking the store", unit="shards"):
        store.check(shard)
    accelerator.wait_for_everyone()  # before a missing one is written
