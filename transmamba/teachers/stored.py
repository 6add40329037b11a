"""A teacher that is run over the training data once: its outputs lie in a folder, and are read from there in
every later epoch and by every later run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config.load import Part
from ..config.registry import TEACHERS
from ..core.batch import Batch
from ..core.output import Capture, Captures, Context, Logits, Output, Stream
from ..errors import UserError, refuse_all, suggest
from ..views.view import View, Walker
from .store_files import Store
from .teacher import Teacher

Indices = npt.NDArray[np.int64]

# of a batch's targets: what the teacher has made of its rows
_TAUGHT = "teacher/"


@TEACHERS.register("stored")
@dataclass(frozen=True, kw_only=True)
class Stored:
    """Another teacher, run once over the training data: its logits, embeddings and scale are read from a
    folder afterwards. It is held in the host's memory for what a store has not: evaluation and `init`.

    teacher: whose outputs they are
    folder: where they lie; written first where it is missing or was interrupted. All processes must see it
    views: how often each item is stored, changed anew each time; epoch e trains on view e modulo views
    seed: of those changes, in place of the recipe's
    dtype: of the stored numbers; float16 takes half the room
    hidden: also all tokens after these sublayers, by stream, for losses on features: `{image: [11, 23]}`
    shard_rows: rows of a file, of which an interrupted writing loses at most one
    """

    teacher: Annotated[Any, Part(TEACHERS)]
    folder: str
    views: int = 1
    seed: int = 0
    dtype: Literal["float16", "float32"] = "float32"
    hidden: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shard_rows: int = 65536

    def __post_init__(self) -> None:
        numbers = {"views": self.views, "shard_rows": self.shard_rows}
        problems = [f"{name} is {value}; write at least 1" for name, value in numbers.items() if value < 1]
        if isinstance(self.teacher, Stored):
            problems.append("teacher is stored itself; write the teacher that is to be run")
        refuse_all(problems)

    @property
    def model(self) -> str | None:
        """What the teacher itself is read from."""
        return getattr(self.teacher, "model", None)

    def build(self) -> StoredTeacher:
        return StoredTeacher(self.teacher.build(), self)


class StoredTeacher(Teacher):
    """Called with inputs, it is the teacher itself, brought to their device; asked for its `answer` to a
    training batch, it reads what lies in `store`, and keeps nothing on the device.

    view:  in the host's memory
    store: None until a run has found or written it
    """

    def __init__(self, teacher: Teacher, config: Stored) -> None:
        super().__init__(
            teacher.view,
            source=teacher.source,
            preprocessing=teacher.preprocessing,
            num_params=teacher.num_params,
            class_names=teacher.class_names,
            licence=teacher.licence,
            base_model=teacher.base_model,
            writer=teacher.writer,
        )
        self.config, self.teacher = config, teacher
        self.placement = "resident"
        self.store: Store | None = None
        self._running: Teacher | None = None
        self._scalars: dict[str, Tensor] = {}
        _check_hidden(self.view, config.hidden)

    @property
    def captures(self) -> dict[str, Capture]:
        """What is stored beside logits and embeddings."""
        return {stream: Capture(hidden=frozenset(after)) for stream, after in self.config.hidden.items()}

    def to(self, device: torch.device | str) -> StoredTeacher:
        """Itself: it goes where it is run, when it is."""
        return self

    def placed(self, placement: str, device: torch.device | str) -> StoredTeacher:
        """The same, whose teacher lies so wherever it is run. Raises UserError for `sharded`: processes that
        write different items do not run it together."""
        if placement == "sharded":
            raise UserError(
                "trainer.teacher_placement is sharded, but a stored teacher is written by each process for "
                "itself; write offloaded"
            )
        other = self._with(self.view)
        other.placement = placement
        return other

    def with_store(self, store: Store) -> StoredTeacher:
        """The same that answers from there."""
        other = self._with(self.view)
        other.store = store
        return other

    def _with(self, view: View) -> StoredTeacher:
        other = super()._with(view)
        assert isinstance(other, StoredTeacher), "a copy of this"
        other._running, other._scalars = None, {}
        return other

    def __call__(
        self,
        inputs: Mapping[str, Tensor] | Tensor,
        captures: Captures | None = None,
        observe: Callable[[str, int, str, Tensor], None] | None = None,
    ) -> Output:
        return self._beside(inputs)(inputs, captures, observe)

    def walk(self, batches: Sequence[Mapping[str, Tensor]], observe: Walker) -> Iterator[tuple[str, int]]:
        yield from self._beside(batches[0]).walk(batches, observe) if batches else ()

    def _beside(self, inputs: Mapping[str, Tensor] | Tensor) -> Teacher:
        """The teacher itself, where these inputs are."""
        device = inputs.device if isinstance(inputs, Tensor) else next(iter(inputs.values())).device
        if self._running is None or self._running.device != device:
            self._running = self._taking_the_place_of(self.teacher).placed(self.placement, device)
        return self._running

    def generate(self, inputs: Mapping[str, Tensor], limit: int) -> Tensor:
        return self._beside(inputs).generate(inputs, limit)

    def check_reads(self, loss: str, captures: Captures) -> None:
        for stream, capture in captures.items():
            kept = set(self.config.hidden.get(stream, ()))
            if capture.mixers:
                raise UserError(
                    f"loss {loss} reads what is inside the teacher's layers, which is not stored; drop the "
                    "loss, or write the teacher itself in place of stored"
                )
            if lacking := sorted(capture.hidden - kept):
                raise UserError(
                    f"loss {loss} reads the teacher's {stream} tokens after sublayers "
                    f"{', '.join(map(str, lacking))}, which are not stored; write teacher.hidden="
                    f"{{{stream}: {sorted(capture.hidden)}}}, another folder, or drop the loss"
                )

    def answer(self, batch: Batch, captures: Captures | None = None) -> Output:
        self._running = None  # where it was run before: its room on the device is the student's now
        rows = {
            name.removeprefix(_TAUGHT): tensor.float()
            for name, tensor in batch.targets.items()
            if name.startswith(_TAUGHT)
        }
        if not rows:
            raise UserError(
                f"a stored teacher answers to batches that carry its rows, this one has "
                f"{', '.join(batch.targets) or 'no targets'}; train by a recipe, or with the teacher itself"
            )
        output = Output(scalars=self._numbers(batch.index.device))
        for name, tensor in rows.items():
            if name == "logits":
                output.logits = Logits(tensor, lambda logits: logits)
            elif name.startswith("hidden."):
                _, stream, after = name.split(".")
                self._stream(output, stream, batch).hidden[int(after)] = tensor
            else:
                output.embeddings[name] = tensor
        return output

    def _stream(self, output: Output, name: str, batch: Batch) -> Stream:
        if name not in output.streams:
            tower = self.view.towers[name]
            mask = Context.of(batch.inputs, tower.embedding.reads).mask
            output.streams[name] = Stream(tower.layout, mask)
        return output.streams[name]

    def _numbers(self, device: torch.device) -> dict[str, Tensor]:
        """Scale and bias there, brought over once: a recorded step copies nothing from the host."""
        if any(number.device != device for number in self._scalars.values()) or not self._scalars:
            self._scalars = {name: number.to(device) for name, number in self.view.scalars.items()}
        return dict(self._scalars)


def rows_of(output: Output, batch: Batch, dtype: str) -> dict[str, npt.NDArray[Any]]:
    """What is stored of a teacher's output, by array: `logits`, a tower's embedding by its name, tokens as
    `hidden.STREAM.SUBLAYER`; (B, ...) each.

    Raises UserError for what has no row for each item, and for numbers that `dtype` cannot hold.
    """
    found = dict(output.embeddings)
    if output.logits is not None:
        found["logits"] = output.logits()
        if found["logits"].dim() != 2:
            raise UserError("a teacher that gives logits of every token cannot be stored; write it itself")
    for name, stream in output.streams.items():
        found |= {f"hidden.{name}.{after}": tokens for after, tokens in stream.hidden.items()}
    if not found:
        raise UserError(
            "the teacher gives neither logits nor embeddings to store; write teacher.hidden={STREAM: "
            "[SUBLAYERS]}, or the teacher itself"
        )
    return {name: _row_of(name, tensor, batch, dtype) for name, tensor in found.items()}


def _row_of(name: str, tensor: Tensor, batch: Batch, dtype: str) -> npt.NDArray[Any]:
    if len(tensor) != len(batch):
        raise UserError(
            f"the teacher's {name} has {len(tensor)} rows for {len(batch)} items; only what has one for each "
            "can be stored"
        )
    made = tensor.detach().to(getattr(torch, dtype)).cpu()
    fine = made.isfinite().flatten(1).all(dim=1)
    if not fine.all():
        item = int(batch.index[int(fine.int().argmin())])
        instead = "write teacher.dtype=float32" if dtype == "float16" else "look at the item and the weights"
        raise UserError(f"the teacher's {name} of item {item} is not finite in {dtype}; {instead}")
    return made.numpy()


class Storable(Protocol):
    """Training batches that a teacher's outputs can be stored for: (view, position) pairs, each drawn from
    them alone. A `data.stream.BatchSource`."""

    def batch(self, items: Indices) -> Batch: ...

    def quick(self, count: int) -> bool: ...

    def identity(self) -> Mapping[str, Any]:
        """Which items there are, and what is done to them before a model sees them: all that the batches
        depend on, as JSON can hold it."""


@dataclass(frozen=True)
class StoredBatches:
    """Training batches that carry their rows of a store as targets; an epoch's are those of its view. A
    `data.stream.BatchSource`."""

    source: Storable
    store: Store

    def quick(self, count: int) -> bool:
        return self.source.quick(count)

    def batch(self, pairs: Indices) -> Batch:
        """Of (epoch, position) pairs, (B, 2)."""
        view, position = pairs[:, 0] % self.store.contents.views, pairs[:, 1]
        batch = self.source.batch(np.stack([view, position], axis=1))
        rows = {f"{_TAUGHT}{name}": row for name, row in self.store.read(view, position).items()}
        return replace(batch, targets={**batch.targets, **rows})


def _check_hidden(view: View, hidden: Mapping[str, tuple[int, ...]]) -> None:
    for stream, after in hidden.items():
        if stream not in view.towers:
            raise UserError(f"teacher.hidden: the teacher has no {stream!r}{suggest(stream, view.towers)}")
        count = len(view.towers[stream].sublayers)
        if odd := [number for number in after if not 0 <= number < count]:
            raise UserError(
                f"teacher.hidden: {stream} has no sublayer {odd[0]}; write numbers from 0 to {count - 1}"
            )
