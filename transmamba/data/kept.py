"""What a process keeps of what it has read, for runs of seconds that follow one another in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Kept:
    """The last `most` things that were made, by name."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: OrderedDict[str, Any] = OrderedDict()

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """What was made under this name, made now where there is none."""
        if name not in self._made:
            self._made[name] = make()
            if len(self._made) > self._most:
                self._made.popitem(last=False)
        return self._made[name]
