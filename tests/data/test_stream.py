"""Which items come when, and the loader, of a source that knows nothing of images."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transmamba.core.batch import Batch
from transmamba.core.task import Steps
from transmamba.data.stream import StepSampler, _ahead, in_order, load
from transmamba.errors import UserError

STEPS = Steps(micro_batch=8, seed=5, num_steps=6)


def _sampler(num_items: int = 22, **changes: int) -> StepSampler:
    return StepSampler(num_items=num_items, steps=replace(STEPS, **changes))  # type: ignore[arg-type]


@dataclass
class Numbers:
    """Rows of text made of the items' own numbers."""

    fast: bool = False

    def batch(self, items: np.ndarray) -> Batch:
        if (items == 13).any():
            raise UserError("item 13 cannot be read")
        text = torch.from_numpy(items.reshape(len(items), -1))
        return Batch({"text": text}, {}, text[:, -1], {"tokens": text.numel()})

    def quick(self, count: int) -> bool:
        return self.fast


def test_each_epoch_visits_everything_once_in_its_own_order() -> None:
    pairs = np.concatenate(list(_sampler(micro_batch=4, num_steps=11)))
    assert pairs.shape == (44, 2) and pairs[:, 0].tolist() == [0] * 22 + [1] * 22
    first, second = pairs[:22, 1], pairs[22:, 1]
    assert sorted(first) == sorted(second) == list(range(22))
    assert first.tolist() != second.tolist()
    other = np.concatenate(list(_sampler(micro_batch=4, num_steps=11, seed=6)))
    assert other[:22, 1].tolist() != first.tolist()


def test_a_step_may_be_larger_than_an_epoch() -> None:
    (pairs,) = list(_sampler(micro_batch=50, num_steps=1))
    assert pairs[:, 0].tolist() == [0] * 22 + [1] * 22 + [2] * 6
    assert np.array_equal(pairs, np.concatenate(list(_sampler(micro_batch=10, num_steps=5))))


@pytest.mark.parametrize("accumulation, world, micro_batch", [(8, 1, 1), (1, 2, 4), (2, 2, 2), (4, 1, 2)])
def test_a_step_is_the_same_items_however_it_is_divided(
    accumulation: int, world: int, micro_batch: int
) -> None:
    whole = list(_sampler())
    ranks = [
        list(_sampler(micro_batch=micro_batch, accumulation=accumulation, rank=rank, world=world))
        for rank in range(world)
    ]
    assert all(len(parts) == 6 * accumulation for parts in ranks)
    for step in range(6):
        parts = [ranks[r][step * accumulation + m] for m in range(accumulation) for r in range(world)]
        assert np.array_equal(np.concatenate(parts), whole[step])


def test_resuming_gives_the_tail() -> None:
    whole = list(_sampler(micro_batch=4, accumulation=2))
    again = _sampler(micro_batch=4, accumulation=2, start_step=4, num_steps=2)
    assert len(again) == 4 and all(map(np.array_equal, again, whole[8:]))


@pytest.mark.parametrize("change, message", [({"micro_batch": 0}, "micro_batch 0"), ({"rank": 2}, "rank 2")])
def test_sampler_mistakes(change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _sampler(**change)
    with pytest.raises(UserError, match="num_items 0"):
        _sampler(num_items=0)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 16, 17, 18])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_ranks_share_a_split_in_equally_many_batches(count: int, world: int, size: int) -> None:
    indices = np.arange(100, 100 + count)
    ranks = [in_order(indices, size, rank, world) for rank in range(world)]
    assert len({len(parts) for parts in ranks}) == 1
    assert all(0 < len(part) <= size for parts in ranks for part in parts)
    for rank, parts in enumerate(ranks):
        mine = np.concatenate(parts) if parts else indices
        own = indices[rank::world]
        assert mine[: len(own)].tolist() == own.tolist()  # and after them, at most something again
        assert len(mine) - len(own) <= 1 and set(mine) <= set(indices)
    if world == 1:
        assert [len(part) for part in ranks[0]] == [size] * (count // size) + [count % size] * bool(
            count % size
        )


def test_a_batch_size_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="batch size 0"):
        in_order(np.arange(3), 0)


def test_a_rank_with_fewer_items_halves_its_last_batch() -> None:
    assert [part.tolist() for part in in_order(np.arange(9), 4, 0, 2)] == [[0, 2, 4, 6], [8]]
    assert [part.tolist() for part in in_order(np.arange(9), 4, 1, 2)] == [[1, 3], [5, 7]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_of_the_items_from_any_process(workers: int) -> None:
    items = [np.arange(start, start + 3) for start in range(20, 50, 3)]
    batches = list(load(Numbers(), items, 3, workers=workers))
    assert [batch.index.tolist() for batch in batches] == [part.tolist() for part in items]
    assert all(batch.counts == {"tokens": 3} for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_cannot_be_read_is_one_line_from_any_process(workers: int) -> None:
    with pytest.raises(UserError, match=r"^item 13 cannot be read$"):
        list(load(Numbers(), [np.array([1, 2]), np.array([13])], 2, workers=workers))


def test_what_is_quickly_made_needs_no_worker_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor, therefore, a batch's way between processes, which costs more than a small one."""
    seen: list[int] = []
    real = torch.utils.data.DataLoader.__init__

    def spy(self: Any, *args: Any, **options: Any) -> None:
        seen.append(options["num_workers"])
        real(self, *args, **options)

    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", spy)
    for fast in (True, False):
        list(load(Numbers(fast), [np.arange(3)], 3, workers=2))
    assert seen == [0, 2]


def test_threads_make_a_few_batches_beforehand_in_order() -> None:
    """Whoever is ready first; and none is made beyond a few ahead of the one that is asked for."""
    made: list[int] = []

    def make(item: Any) -> Any:
        time.sleep(0.02 if item % 3 == 0 else 0.0)
        made.append(item)
        return item

    batches: Any = _ahead(make, iter(range(20)), threads=3)  # type: ignore[arg-type]
    assert [next(batches) for _ in range(5)] == list(range(5))
    time.sleep(0.1)
    assert 5 < len(made) <= 5 + 3 + 2
    assert list(batches) == list(range(5, 20))


def test_threads_pass_on_what_was_raised_and_stop_when_asked() -> None:
    def make(item: Any) -> Any:
        if item == 4:
            raise UserError("item 4 cannot be read")
        return item

    with pytest.raises(UserError, match="item 4"):
        list(_ahead(make, iter(range(1000)), threads=2))  # type: ignore[arg-type]
    before = threading.active_count()
    batches: Any = _ahead(make, iter(range(100, 1000)), threads=2)  # type: ignore[arg-type]
    assert next(batches) == 100 and threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_a_gpus_batches_are_pinned_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Batch] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Batch, "pin_memory", lambda self: pinned.append(self) or self)  # type: ignore[func-returns-value]
    items = [np.arange(start, start + 3) for start in range(20, 80, 3)]
    batches = list(load(Numbers(), items, 3, pin_memory=True))
    assert [batch.index.tolist() for batch in batches] == [part.tolist() for part in items]
    assert set(map(id, pinned)) == set(map(id, batches))
    with pytest.raises(UserError, match=r"^item 13 cannot be read$"):
        list(load(Numbers(), [np.array([1, 2]), np.array([13])], 2, pin_memory=True))


def test_the_stream_knows_nothing_of_images() -> None:
    from transmamba.data import hashing, stream, subset

    for module in (hashing, stream, subset):
        assert module.__file__ and "from .images" not in Path(module.__file__).read_text()
