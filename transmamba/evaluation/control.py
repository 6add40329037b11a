"""Questions put wrongly on purpose: which item lends another its question, or its picture.

What is answered rightly all the same tells how much of a score comes from how answers are distributed
(Goyal et al., "Making the V in VQA matter", CVPR 2017)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from ..data.hashing import permutation
from ..data.questions.source import Item

Ints = npt.NDArray[np.int64]
# how many are looked at for one that differs
_TRIES = 64


def other_questions(items: Sequence[Item], seed: int) -> tuple[Ints, Ints]:
    """((K,) places of items, (K,) whose question each is asked): of the same type, with as many pictures, and
    in other words, or in the same ones with none of its choices. Items of which there is no such other are
    left out."""
    return _others(items, seed, _ask_apart)


def other_pictures(items: Sequence[Item], seed: int) -> tuple[Ints, Ints]:
    """((K,) places of items with pictures, (K,) whose pictures each is shown): of the same type, as many, and
    none of them its own. Items of which there is no such other are left out."""
    index, others = _others(items, seed, lambda a, b: not any(each in b.pictures for each in a.pictures))
    seen = np.array([bool(items[place].pictures) for place in index], dtype=bool)
    return index[seen], others[seen]


def _ask_apart(a: Item, b: Item) -> bool:
    """Whether two questions differ in more than letters' cases, spaces and the order of what is offered."""
    if a.question.casefold().split() != b.question.casefold().split():
        return True
    return bool(a.choices) and bool(b.choices) and set(a.choices).isdisjoint(b.choices)


def _others(items: Sequence[Item], seed: int, differ: Callable[[Item, Item], bool]) -> tuple[Ints, Ints]:
    """Each the first behind it, in a random order of its group that goes round, that differs."""
    groups: dict[Hashable, list[int]] = {}
    for place in permutation(len(items), seed).tolist():
        item = items[place]
        groups.setdefault((item.type, len(item.pictures), bool(item.choices)), []).append(place)
    found: dict[int, int] = {}
    for group in groups.values():
        for n, place in enumerate(group):
            behind = (group[(n + step) % len(group)] for step in range(1, min(len(group), _TRIES)))
            other = next((each for each in behind if differ(items[place], items[each])), None)
            if other is not None:
                found[place] = other
    index = np.array(sorted(found), dtype=np.int64)
    return index, np.array([found[place] for place in index.tolist()], dtype=np.int64)
