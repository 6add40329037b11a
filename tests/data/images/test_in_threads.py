"""Many items are worked on in order: in threads where they take long, here where they do not."""

from __future__ import annotations

import threading
import time

import pytest

from transmamba.data.images import decoding
from transmamba.data.images.decoding import in_threads


def threads_of(seconds: float, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    monkeypatch.setattr(decoding.os, "cpu_count", lambda: 4)

    def work(item: int) -> tuple[int, int]:
        time.sleep(seconds)
        return item, threading.get_ident()

    done = list(in_threads(range(200), work, "trying"))
    assert [item for item, _ in done] == list(range(200))
    return {ident for _, ident in done}


def test_quick_items_do_not_wait_for_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_QUICK", 10.0)  # however slow this machine is now
    assert threads_of(0.0, monkeypatch) == {threading.get_ident()}


def test_slow_items_share_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(threads_of(2 * decoding._QUICK, monkeypatch)) > 2


@pytest.mark.parametrize("bad", [3, 150])
@pytest.mark.parametrize("quick", [0.0, 10.0])
def test_a_refusal_ends_it(bad: int, quick: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_QUICK", quick)

    def work(item: int) -> int:
        if item == bad:
            raise ValueError("that one")
        return item

    found = []
    with pytest.raises(ValueError, match="that one"):
        for item in in_threads(range(200), work, "trying"):
            found.append(item)
    assert found == list(range(len(found))) and len(found) <= bad
