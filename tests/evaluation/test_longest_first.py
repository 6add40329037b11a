"""How questions of unlike lengths are shared out among processes."""

from __future__ import annotations

import numpy as np
import pytest

from transmamba.core.task import Pass
from transmamba.evaluation.requests import longest_first


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("count", [1, 7, 12])
def test_all_processes_have_as_many_batches_none_of_them_empty(world: int, count: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 30, count)
    passes = [Pass(batch_size=2, rank=rank, world=world) for rank in range(world)]
    shared = [list(longest_first(lengths, passing)) for passing in passes]
    assert len({len(batches) for batches in shared}) == 1
    seen = []
    for turn in zip(*shared, strict=True):
        for mine, group in turn:
            assert 1 <= len(mine) <= 2 and np.isin(mine, group).all()
            assert np.array_equal(group, turn[0][1])
            seen += mine.tolist()
    assert set(seen) == set(range(count))
    longest = [lengths[group].max() for _, group in shared[0]]
    assert longest == sorted(longest, reverse=True)
