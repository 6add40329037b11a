"""The stream of batches: stateless, so that a resumed run continues it exactly.

The training data of a stage is the endless concatenation of epochs, each a permutation that (seed, epoch)
determines. Optimizer step s takes items [s G, (s + 1) G) of it, with G = micro_batch * accumulation * world;
its micro-batch m on rank r takes the slice that starts at (m * world + r) * micro_batch. One step therefore
sees the same items however it is divided, and what is drawn for an item depends on (seed, epoch, index)
alone: who makes a batch, and when, changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from ..core.batch import Batch
from ..core.task import Steps
from ..errors import UserError
from .hashing import permutation

# Which hash of (seed, ...): augmentation uses another.
_ORDER = 0
# Threads that make a GPU's next batches: arithmetic on arrays and decoding leave the interpreter to others.
_THREADS = 4

Indices = npt.NDArray[np.int64]
T = TypeVar("T")


class BatchSource(Protocol):
    """Whatever makes batches, of any modality: picklable, and drawing from no generator but its own."""

    def batch(self, items: Indices) -> Batch:
        """The batch of these items, a pure function of them. Raises UserError when one cannot be read."""

    def quick(self, count: int) -> bool:
        """Whether `count` items are made faster than they are sent from one process to another."""


@dataclass(frozen=True, kw_only=True)
class StepSampler:
    """The items of each micro-batch of this rank: arrays (micro_batch, 2) of (epoch, position) pairs.

    Resuming is constructing it with `steps.start_step`, the number of optimizer steps already taken.
    """

    num_items: int
    steps: Steps

    def __post_init__(self) -> None:
        steps = self.steps
        sizes = {"num_items": self.num_items, "micro_batch": steps.micro_batch}
        sizes |= {"accumulation": steps.accumulation, "world": steps.world}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1")
        if not 0 <= steps.rank < steps.world:
            raise UserError(f"rank {steps.rank}: must be between 0 and {steps.world - 1}")

    def __len__(self) -> int:
        return self.steps.num_steps * self.steps.accumulation

    def __iter__(self) -> Iterator[Indices]:
        orders: dict[int, Indices] = {}
        steps = self.steps
        offsets = np.arange(steps.micro_batch)
        for step in range(steps.start_step, steps.start_step + steps.num_steps):
            for micro in range(steps.accumulation):
                block = (step * steps.accumulation + micro) * steps.world + steps.rank
                epoch, place = np.divmod(block * steps.micro_batch + offsets, self.num_items)
                orders = {int(e): orders[e] if e in orders else self._order(int(e)) for e in np.unique(epoch)}
                position = np.concatenate([order[place[epoch == e]] for e, order in orders.items()])
                yield np.stack([epoch, position], axis=1)

    def _order(self, epoch: int) -> Indices:
        return permutation(self.num_items, self.steps.seed, _ORDER, epoch)


def train_stream(source: BatchSource, num_items: int, steps: Steps) -> Iterator[Batch]:
    """This rank's micro-batches of a source that takes (epoch, position) pairs, from `start_step` on."""
    sampler = StepSampler(num_items=num_items, steps=steps)
    return load(source, sampler, steps.micro_batch, workers=steps.workers, pin_memory=steps.pin_memory)


def in_order(indices: Indices, batch_size: int, rank: int = 0, world: int = 1) -> list[Indices]:
    """`indices[rank::world]` in batches, each item once; the last batch may be smaller.

    Every rank gets equally many batches, so that ranks which must meet in each do: one with fewer items
    halves its last batch; where there is nothing to halve, an item comes again, so whoever counts items must
    tell them by their index. Raises UserError for a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: must be at least 1")
    items = np.asarray(indices, dtype=np.int64)
    mine, most = items[rank::world], -(-len(items) // world)
    parts = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    if len(parts) < -(-most // batch_size):
        last = parts.pop() if parts else items[:1]
        half = len(last) // 2
        parts += [last[:-half], last[-half:]] if half else [last] * (2 if len(mine) else 1)
    return parts


def load(
    source: BatchSource,
    items: Iterable[Indices],
    batch_size: int,
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batch of each of `items`, in order, whatever the number of worker processes.

    batch_size: how large they are at most
    pin_memory: for a GPU, which works on one batch while the next are made, by threads if not by workers
    Leaves the global generators as they are. Raises UserError as the source does, from a worker too.
    """
    pin_memory = pin_memory and torch.cuda.is_available()
    workers = 0 if source.quick(batch_size) else workers
    guarded = _Guarded(source)
    batches: Iterable[Batch | Failure]
    if pin_memory and not workers:
        batches = _ahead(guarded.pinned, items, _THREADS)
    else:
        batches = DataLoader(
            guarded,
            batch_sampler=items,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # its own: by default workers' seeds are drawn from the global one
        )
    for batch in batches:
        if isinstance(batch, Failure):
            raise UserError(batch.message)
        yield batch


@dataclass(frozen=True)
class Failure:
    """A UserError on its way out of a worker, whence an exception arrives with a traceback as its text."""

    message: str


class _Guarded(Dataset):
    """What DataLoader takes; whole batches at once."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitems__(self, items: Indices) -> Batch | Failure:
        try:
            return self.source.batch(np.asarray(items, dtype=np.int64))
        except UserError as error:
            return Failure(str(error))

    def pinned(self, items: Indices) -> Batch | Failure:
        """The same in memory that a GPU copies from without waiting."""
        batch = self.__getitems__(items)
        return batch.pin_memory() if isinstance(batch, Batch) else batch


def _ahead(make: Callable[[Indices], T], items: Iterable[Indices], threads: int) -> Iterator[T]:
    """`make` of each of the items, in order, a few of them made by threads while the last is worked on.

    `make` is a pure function, so it does not matter which is made first.
    """
    pool = ThreadPoolExecutor(max_workers=threads)
    try:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _as_is(batch: Any) -> Any:
    return batch
