"""A teacher run over every view of the training items, its outputs written shard by shard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..core.batch import Batch
from ..data.stream import load
from ..errors import UserError
from ..reporting.progress import Display
from ..teachers.store_files import Contents, Store
from ..teachers.stored import Storable, StoredTeacher, rows_of
from ..training.stage import TrainerConfig
from .folder import sole

Rows = dict[str, npt.NDArray[Any]]


class Writing:
    """One launch's writing. All processes take part: shard i is written by process i modulo their number.

    wanted: `views`, `dtype`, `num_items` and `identity` of the store
    """

    def __init__(
        self,
        teacher: StoredTeacher,
        source: Storable,
        folder: Path,
        wanted: Mapping[str, Any],
        accelerator: Any,
        trainer: TrainerConfig,
        display: Display,
    ) -> None:
        self.teacher, self.source, self.folder, self.wanted = teacher, source, folder, wanted
        self.accelerator, self.trainer, self.display = accelerator, trainer, display

    def store(self, check: Callable[[Store], None]) -> Store:
        """The store, begun where there is none, with what was missing of it.

        check: refuses a store that another process has begun meanwhile
        """
        with contextlib.ExitStack() as held:
            if self.accelerator.is_main_process:
                self._begin(check, held)
            self.accelerator.wait_for_everyone()
            store = Store.open(self.folder)
            if store is None:
                raise self._unseen()
            self._write(store)
            self.accelerator.wait_for_everyone()
        if store.missing():
            raise self._unseen()
        return store

    def _unseen(self) -> UserError:
        return UserError(
            f"store {str(self.folder)!r}: process {self.accelerator.process_index} does not see what others "
            "wrote there; write a teacher.folder that all machines share"
        )

    def _begin(self, check: Callable[[Store], None], held: contextlib.ExitStack) -> None:
        with contextlib.suppress(OSError):  # what cannot be made is refused below, where it is written
            self.folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(sole(self.folder, "store"))
        store = Store.open(self.folder)
        if store is None:
            shapes = {name: row.shape[1:] for name, row in self._rows(self._first()).items()}
            shard_rows, source = self.teacher.config.shard_rows, self.teacher.source
            contents = Contents(arrays=shapes, shard_rows=shard_rows, source=source, **self.wanted)
            store = Store.create(self.folder, contents)
        check(store)
        store.sweep()
        room = f"{store.contents.bytes / 1e6:,.1f} MB"
        self.display.say(f"storing the outputs of teacher {self.teacher.source} in {self.folder} ({room})")

    def _first(self) -> Batch:
        return self.source.batch(np.zeros((1, 2), dtype=np.int64))

    def _write(self, store: Store) -> None:
        """This process's missing shards, in order."""
        missing = set(store.missing())
        mine = range(self.accelerator.process_index, store.num_shards, self.accelerator.num_processes)
        parts = {shard: self._parts(store.shard_of(shard)) for shard in mine if shard in missing}
        every = [part for of in parts.values() for part in of]
        batches = load(
            self.source,
            (self._pairs(part) for part in every),
            self.trainer.eval_batch_size,
            workers=self.trainer.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        watched = self.display.watch(batches, "storing the teacher's outputs", len(every))
        for shard, of in parts.items():
            store.write(shard, self._chunks(watched, len(of), store.contents.arrays))

    def _parts(self, rows: range) -> list[range]:
        """A shard's rows in batches, which do not depend on what else is written."""
        size = self.trainer.eval_batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _pairs(self, rows: range) -> npt.NDArray[np.int64]:
        """(view, position) of each row."""
        return np.stack(np.divmod(np.asarray(rows, dtype=np.int64), self.wanted["num_items"]), axis=1)

    def _chunks(
        self, batches: Iterator[Batch], count: int, shapes: Mapping[str, tuple[int, ...]]
    ) -> Iterator[Rows]:
        for _ in range(count):
            rows = self._rows(next(batches))
            found = {name: row.shape[1:] for name, row in rows.items()}
            if found != shapes:
                raise UserError(
                    f"the teacher's outputs have no fixed shape ({_shown(shapes)} of the first item, "
                    f"{_shown(found)} of another), so they cannot be stored; write the teacher itself"
                )
            yield rows

    @torch.no_grad()
    def _rows(self, batch: Batch) -> Rows:
        batch = batch.to(self.accelerator.device, non_blocking=True)
        with self.accelerator.autocast():
            output = self.teacher(batch.inputs, self.teacher.captures)
            return rows_of(output, batch, self.wanted["dtype"])


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
