"""What layers share of a pass."""

from __future__ import annotations

import dataclasses

import torch

from transmamba.core.output import Context
from transmamba.views.sublayers import readable


def test_who_may_read_whom_is_said_once_a_pass() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1]]).int()
    packed, x = Context(segments=segments), torch.zeros(1, 5, 3)
    first = readable(packed, True, None, x)
    assert first is not None and readable(packed, True, None, x) is first
    # by hand: one's own document, nothing ahead
    rows = [[s == t and j <= i for j, t in enumerate(segments[0])] for i, s in enumerate(segments[0])]
    assert first[0, 0].tolist() == rows
    windowed = readable(packed, True, 2, x)
    assert windowed is not None and not windowed[0, 0, 4, 2] and windowed[0, 0, 4, 3]
    both_ways = readable(packed, False, None, x)
    assert both_ways is not None and both_ways[0, 0, 2, 4] and not both_ways[0, 0, 1, 2]


def test_a_context_that_is_another_begins_anew() -> None:
    x = torch.zeros(1, 3, 2)
    one = Context(mask=torch.tensor([[True, True, False]]))
    seen = readable(one, True, None, x)
    other = dataclasses.replace(one, mask=torch.tensor([[False, True, True]]))
    found = readable(other, True, None, x)
    assert seen is not None and found is not None
    assert seen[0, 0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert found[0, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
