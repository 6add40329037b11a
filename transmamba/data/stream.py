"""The stream of training batches: stateless, so that a resumed run continues it exactly.

The training data of a stage is the endless concatenation of epochs, each a permutation that (seed, epoch)
determines. Optimizer step s takes items [s G, (s + 1) G) of it, with G = micro_batch * accumulation * world;
its micro-batch m on rank r takes the slice that starts at (m * world + r) * micro_batch. One step therefore
sees the same items however it is divided, and an item's augmentation depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from ..core.batch import Batch
from ..core.preprocessing import Preprocessing
from ..errors import UserError
from .hashing import permutation
from .images.augment import (
    Augment,
    Moves,
    PictureTransform,
    can_index,
    index_batch,
    move_batch,
    preserved_generators,
)
from .images.source import ImageSource

# Which hash of (seed, ...): augmentation uses another.
_ORDER = 0
# A batch indexed out of memory costs less than its way between processes up to about this many values.
_SMALL = 2**20
# Threads that make batches indexed out of memory.
_THREADS = 4

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class StepSampler:
    """The items of each micro-batch of this rank: arrays (micro_batch, 2) of (epoch, position) pairs.

    Resuming is constructing it with `start_step`, the number of optimizer steps already taken.
    """

    num_items: int
    micro_batch: int
    accumulation: int
    rank: int
    world: int
    seed: int
    start_step: int
    num_steps: int

    def __post_init__(self) -> None:
        for name in ("num_items", "micro_batch", "accumulation", "world"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)}: must be at least 1")
        if not 0 <= self.rank < self.world:
            raise UserError(f"rank {self.rank}: must be between 0 and {self.world - 1}")

    def __len__(self) -> int:
        return self.num_steps * self.accumulation

    def __iter__(self) -> Iterator[Indices]:
        orders: dict[int, Indices] = {}
        offsets = np.arange(self.micro_batch)
        for step in range(self.start_step, self.start_step + self.num_steps):
            for micro in range(self.accumulation):
                block = (step * self.accumulation + micro) * self.world + self.rank
                epoch, place = np.divmod(block * self.micro_batch + offsets, self.num_items)
                orders = {int(e): orders[e] if e in orders else self._order(int(e)) for e in np.unique(epoch)}
                position = np.concatenate([order[place[epoch == e]] for e, order in orders.items()])
                yield np.stack([epoch, position], axis=1)

    def _order(self, epoch: int) -> Indices:
        return permutation(self.num_items, self.seed, _ORDER, epoch)


@dataclass(frozen=True)
class Failure:
    """A UserError on its way out of a worker, whence an exception arrives with a traceback as its text."""

    message: str


class TrainImages(Dataset):
    """Augmented batches of `source` by arrays of (epoch, position); a position counts in `indices`, (M,)."""

    def __init__(
        self, source: ImageSource, indices: Indices, preprocessing: Preprocessing, augment: Augment, seed: int
    ) -> None:
        self.source = source
        self.indices = indices
        self.preprocessing = preprocessing
        self.augment = augment
        self.seed = seed
        array = source.array()
        self.array = array if augment.only_moves and can_index(array, preprocessing) else None
        self.transform = None if self.array is not None else PictureTransform(preprocessing, augment)

    def __getitems__(self, pairs: Indices) -> Batch | Failure:
        try:
            return self.batch(np.asarray(pairs, dtype=np.int64))
        except UserError as error:
            return Failure(str(error))

    def batch(self, pairs: Indices) -> Batch:
        """The items `pairs`, (B, 2). Raises UserError when one does not decode."""
        epoch, index = pairs[:, 0], self.indices[pairs[:, 1]]
        moves = Moves.draw(self.augment, self.seed, epoch, index)
        if self.array is not None:
            images = move_batch(self.array, index, moves, self.preprocessing, self.augment)
        else:
            assert self.transform is not None
            with preserved_generators():
                changed = [self.transform(self.source.image(int(i)), moves, n) for n, i in enumerate(index)]
            images = torch.stack(changed)
        return Batch(images, torch.from_numpy(self.source.labels[index]), torch.from_numpy(index))


class EvalImages(Dataset):
    """Batches of `source` by arrays of image numbers, through the evaluation transform."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        self.source = source
        self.preprocessing = preprocessing
        array = source.array()
        self.array = array if can_index(array, preprocessing) else None
        self.transform = preprocessing.eval_transform()

    def __getitems__(self, index: Indices) -> Batch | Failure:
        try:
            return self.batch(np.asarray(index, dtype=np.int64))
        except UserError as error:
            return Failure(str(error))

    def batch(self, index: Indices) -> Batch:
        """Images `index`, (B,). Raises UserError when one does not decode."""
        if self.array is not None:
            images = index_batch(self.array, index, self.preprocessing)
        else:
            images = torch.stack([self.transform(self.source.image(int(i))) for i in index])
        return Batch(images, torch.from_numpy(self.source.labels[index]), torch.from_numpy(index))


def train_batches(
    dataset: TrainImages, sampler: StepSampler, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """The `num_steps * accumulation` batches of `sampler`. Leaves the global generators as they are."""
    return _batches(dataset, sampler, sampler.micro_batch, workers, pin_memory)


def eval_batches(
    source: ImageSource,
    indices: Indices,
    preprocessing: Preprocessing,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Images `indices[rank::world]` of `source` in order, each once; the last batch may be smaller.

    Ranks may differ by one image, hence by one batch: gather after the loop, and sort by `Batch.index`.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: must be at least 1")
    mine = np.asarray(indices, dtype=np.int64)[rank::world]
    parts = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return _batches(EvalImages(source, preprocessing), parts, batch_size, workers, pin_memory)


def _batches(dataset: Any, sampler: Any, batch_size: int, workers: int, pin_memory: bool) -> Iterator[Batch]:
    pin_memory = pin_memory and torch.cuda.is_available()
    indexed = dataset.array is not None and batch_size * dataset.array[0].size <= _SMALL
    if workers == 0 or indexed:
        if pin_memory:
            # On a GPU's host threads make the next batches while the device works on this one; one alone
            # where pictures are transformed, which draws from the global generators.
            yield from _ahead(
                lambda items: dataset.batch(items).pin_memory(), sampler, _THREADS if indexed else 1
            )
        else:
            yield from map(dataset.batch, sampler)
        return
    # Its own generator: by default a loader draws its workers' seed from the global one.
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, Failure):
            raise UserError(batch.message)
        yield batch


def _ahead(make: Callable[[Indices], Batch], sampler: Iterable[Indices], threads: int) -> Iterator[Batch]:
    """`make` of each of the sampler's items, in order; a few of them made beforehand by threads."""
    pool = ThreadPoolExecutor(max_workers=threads)
    try:
        waiting: deque[Future[Batch]] = deque()
        for items in sampler:
            waiting.append(pool.submit(make, items))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _as_is(batch: Any) -> Any:
    return batch
