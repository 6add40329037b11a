"""A picture that does not decode is replaced by one that a hash of its number names, counted, and limited."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transmamba.data.pairs.bad import Forgiving
from transmamba.errors import UserError


@dataclass
class Numbered:
    """Pictures whose pixels are their number; those of `broken` do not decode."""

    count: int
    broken: frozenset[int] = frozenset()
    skipped: int = 3
    decoded: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Image.Image:
        self.decoded.append(index)
        if index in self.broken:
            raise UserError(f"picture {index}: does not decode as an image")
        return Image.new("I", (1, 1), index)

    def captions(self, index: int) -> tuple[str, ...]:
        return (f"this is {index}",)

    def array(self) -> None:
        return None


def shown(source: Forgiving, index: int) -> int:
    """The number of the picture at `index`, which its caption names too."""
    number = int(np.asarray(source.image(index))[0, 0])
    assert source.captions(index) == (f"this is {number}",) and source.number(index) == number
    return number


BROKEN = frozenset({0, 3, 4, 5, 50, 99})


def test_good_pictures_stay_and_bad_ones_are_replaced_with_their_captions() -> None:
    source = Forgiving(Numbered(100, BROKEN), 0.1)
    found = [shown(source, n) for n in range(100)]
    assert all((n == number) == (n not in BROKEN) for n, number in enumerate(found))
    assert not BROKEN & set(found) and source.bad == 6 and source.skipped == 3 and len(source) == 100
    with pytest.raises(IndexError):
        source.image(100)


def test_what_replaces_a_picture_follows_from_its_number_alone() -> None:
    whole = {n: shown(Forgiving(Numbered(100, BROKEN), 0.1), n) for n in range(100)}
    for order in (range(99, -1, -1), np.random.default_rng(0).permutation(100).tolist()):
        source = Forgiving(Numbered(100, BROKEN), 0.1)
        assert {n: shown(source, n) for n in order} == whole
    late = Forgiving(Numbered(100, BROKEN), 0.1)  # a resumed run asks for the captions first
    assert [late.captions(n) for n in sorted(BROKEN)] == [(f"this is {whole[n]}",) for n in sorted(BROKEN)]


def test_neighbours_are_not_all_replaced_by_one() -> None:
    broken = frozenset(range(1000, 1400))  # a shard that is lost
    source = Forgiving(Numbered(4000, broken), 0.2)
    often = Counter(source.number(n) for n in broken)
    # were the first good one after them taken, it would come 400 times
    assert len(often) > 300 and sum(count for n, count in often.items() if n != 1400) > 300
    assert max(count for n, count in often.items() if n != 1400) <= 4


def test_a_good_picture_is_decoded_once_for_both_of_its_halves() -> None:
    inner = Numbered(10)
    source = Forgiving(inner, 0)
    source.image(4)
    source.captions(4)
    assert inner.decoded == [4]
    source.image(4)
    assert inner.decoded == [4, 4]


@pytest.mark.parametrize(
    ("limit", "allowed"), [(0.05, 5), (5, 5), (0.29, 29), (0, 0), (0.0, 0), (1, 1), (500, 99)]
)
def test_as_many_as_the_limit_are_borne_and_not_one_more(limit: float, allowed: int) -> None:
    source = Forgiving(Numbered(100, frozenset(range(allowed))), limit)
    for n in range(100):
        source.image(n)
    assert source.bad == allowed == source.allowed
    source = Forgiving(Numbered(100, frozenset(range(allowed + 1))), limit)
    with pytest.raises(UserError, match=f"^{allowed + 1} of 100 pictures do not decode") as caught:
        for n in range(100):
            source.image(n)
    message = str(caught.value)
    assert f"more than the limit {limit} allows" in message and "\n" not in message
    listed = min(3, allowed + 1)
    assert all(f"picture {n}: does not decode" in message for n in range(listed))
    assert f"picture {listed}:" not in message


def test_nothing_but_bad_pictures_ends() -> None:
    source = Forgiving(Numbered(20, frozenset(range(20))), 0.99)
    with pytest.raises(UserError, match="20 of 20 pictures do not decode"):
        source.image(7)


def test_the_first_few_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    source = Forgiving(Numbered(100, BROKEN), 0.5)
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        for n in [*range(100), *range(100)]:
            source.image(n)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and said[0].endswith("is bad: picture 0: does not decode as an image")


@pytest.mark.parametrize("limit", [-1, -0.1, 1.0, 1.5])
def test_limits_that_are_none(limit: float) -> None:
    with pytest.raises(UserError, match=f"limit of bad pictures {limit}: write a share below 1.0"):
        Forgiving(Numbered(10), limit)


def test_pictures_in_memory_are_passed_through() -> None:
    class Memory(Numbered):
        def array(self) -> Any:
            return np.zeros((10, 1, 1, 3), dtype=np.uint8)

    array = Forgiving(Memory(10), 0.1).array()
    assert array is not None and array.shape == (10, 1, 1, 3) and Forgiving(Numbered(10), 0.1).array() is None


def test_a_copy_knows_what_was_known() -> None:
    source = Forgiving(Numbered(100, BROKEN), 0.1)
    expected = [shown(source, n) for n in range(100)]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.bad == 6 and [shown(copy, n) for n in range(100)] == expected


def look(source: Forgiving, numbers: range) -> None:
    for n in numbers:
        source.image(n)


def test_forked_workers_count_together() -> None:
    source = Forgiving(Numbered(100, frozenset(range(0, 100, 10))), 0.5)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=look, args=(source, part)) for part in (range(50), range(50, 100))]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0] and source.bad == 10


def test_spawned_workers_count_together() -> None:
    source = Forgiving(Numbered(100, BROKEN), 0.5)
    # what a data loader sends to a worker that it spawns, and what arrives there
    there = pickle.loads(ForkingPickler.dumps(source))
    look(there, range(50))
    assert source.bad == there.bad == 4


def test_only_pictures_that_are_trained_on_take_a_bad_ones_place() -> None:
    among = np.array([n for n in range(100) if n % 7], dtype=np.int64)  # the others are held out
    source = Forgiving(Numbered(100, BROKEN), 0.1, among)
    places = [shown(source, int(n)) for n in among if n in BROKEN]
    assert places and all(number % 7 and number not in BROKEN for number in places)
    # with almost all of them bad, every one of the rest may be
    few = Forgiving(Numbered(10, frozenset({1, 2})), 5, np.array([1, 2, 3]))
    assert [shown(few, n) for n in (1, 2, 3)] == [3, 3, 3]
    assert few.allowed == 2
