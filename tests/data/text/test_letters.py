"""Questions with lettered options, in several orders."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from small_language import write_jsonl

from transmamba.config.registry import BENCHMARKS
from transmamba.data.text.letters import Lettered, orders
from transmamba.errors import UserError

ROWS = [
    dict(query="Question: Which is hot?", choices=["ice", "fire", "snow", "rain"], gold=1),
    dict(query="Question: Which barks?", choices=["cat", "dog"], gold=1),
    dict(query="Question: Which flies?", choices=["bird", "dog", "cat"], gold=0),
]


def built(tmp_path: Path, **options: Any) -> list[Lettered]:
    path = write_jsonl(tmp_path / "arc.jsonl", ROWS)
    found: list[Lettered] = BENCHMARKS["arc_easy_letters"](path=path, **options).build(None)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_orders_are_all_of_them_and_begin_with_turns(count: int) -> None:
    found = list(orders(count))
    assert sorted(found) == sorted(itertools.permutations(range(count))) and found[0] == (*range(count),)
    for first in range(0, len(found), count):  # every option once at every letter
        several = found[first : first + count]
        assert all({order[letter] for order in several} == {*range(count)} for letter in range(count))


@pytest.mark.parametrize(("permuted", "counts"), [(1, [1, 1, 1]), (4, [4, 2, 4]), (24, [24, 2, 6])])
def test_questions_in_their_orders(permuted: int, counts: list[int], tmp_path: Path) -> None:
    found = built(tmp_path, permuted=permuted)
    assert [each.number for each in found] == [n for n, count in enumerate(counts) for _ in range(count)]
    assert len({(each.number, each.order) for each in found}) == len(found)
    for each in found:
        row = ROWS[each.number]
        head, *options, last = each.context.split("\n")
        assert head == row["query"] and last == "Answer:" and each.answer == row["gold"]
        assert options == [f"{'ABCD'[k]}. {row['choices'][o]}" for k, o in enumerate(each.order)]  # type: ignore[index]
    assert found[0].context == "Question: Which is hot?\nA. ice\nB. fire\nC. snow\nD. rain\nAnswer:"


def test_no_order_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="permuted is 0; write a number of orders, at least 1"):
        built(tmp_path, permuted=0)
