"""How far a long thing is: bars on a terminal, elsewhere a line every 15 s; both with the time left."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 15.0

T = TypeVar("T")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        self.quiet = True  # rich would exit; a terminal that went away must not end a training run


class _Bars(Progress):
    """Bars above a line of text, which wraps where a terminal is narrow."""

    status = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.status:
            yield Text(self.status)


class Display:
    """The standard error stream as users see it. Quiet: nothing is shown."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = _Console(stderr=True, quiet=quiet)
        self._bars: _Bars | None = None
        self._lengths: dict[str, int] = {}

    def say(self, text: str) -> None:
        """A line for the user, above the bars."""
        try:
            printable = text.encode(self._console.encoding, "replace").decode(self._console.encoding)
            self._console.print(printable, markup=False, highlight=False, soft_wrap=True)
        except (OSError, ValueError):  # stderr was closed
            self._console.quiet = True

    def watch(
        self, items: Iterable[T], title: str, total: int | None = None, unit: str = "batches"
    ) -> Iterator[T]:
        """The same items, while a bar shows how many have been taken.

        total: how many there are; left out: what `items` says of itself, or how many they were the last time
            that something of this title was watched
        """
        total = total or operator.length_hint(items, 0) or self._lengths.get(title)
        bar, done = self.bar(title, total, unit), 0
        try:
            for done, item in enumerate(items, 1):
                yield item
                bar.update(done)
            self._lengths[title] = done
        finally:
            bar.close()

    def bar(self, title: str, total: int | None, unit: str, prompt: bool = False) -> Bar:
        """A new bar. prompt: its first line is not waited 15 s for, where there is no terminal."""
        return Bar(self, title, total, unit, prompt)

    def bars(self) -> _Bars | None:
        """Rich's bars, started; None where there is no terminal, or nothing is to be seen."""
        if not self._console.is_terminal or self._console.quiet:
            return None
        if self._bars is None:
            self._bars = _Bars(
                TextColumn("{task.description}", markup=False),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self._console,
            )
            self._bars.start()
        return self._bars

    def shows(self, bars: _Bars) -> bool:
        """Whether they have not been ended."""
        return self._bars is bars

    def close(self) -> None:
        """Ends all bars; what they showed last stays."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class Bar:
    """One long thing. Made by `Display.bar`."""

    def __init__(self, display: Display, title: str, total: int | None, unit: str, prompt: bool) -> None:
        self.display, self.title, self.total, self.unit = display, title, total, unit
        self._bars = display.bars()
        self._task = None if self._bars is None else self._bars.add_task(title, total=total, left="")
        self._last_line = -math.inf if prompt else time.monotonic()
        # not always from 0: a run may have been resumed, and then its first update is the start
        self._start: tuple[int, float] | None = None if prompt else (0, time.monotonic())

    def update(
        self,
        done: int,
        status: str = "",
        *,
        title: str | None = None,
        line: bool = False,
        guess: float | None = None,
    ) -> None:
        """So many are done. line: say so at once; guess: seconds left, used until the pace is known."""
        self.title = self.title if title is None else title
        left = self._left(done, guess)
        if self._bars is not None and self._task is not None:
            self._bars.status = status
            self._bars.update(self._task, completed=done, description=self.title, left=left)
        now = time.monotonic()
        if self._bars is not None and not line:
            return
        if line or done == self.total or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            self.display.say(self._line(done, left, status))

    def close(self) -> None:
        """Takes the bar away, unless it is the last."""
        if self._bars is not None and self._task is not None:
            if len(self._bars.tasks) > 1:
                self._bars.remove_task(self._task)
            elif self.display.shows(self._bars):
                self.display.close()
            self._task = None

    def _line(self, done: int, left: str, status: str) -> str:
        of = f"{done:,}/{self.total:,}" if self.total else f"{done:,}"
        return "  ".join(filter(None, [f"{self.title}: {self.unit} {of}", left, status]))

    def _left(self, done: int, guess: float | None) -> str:
        """`0:01:10 left`, at the pace since the start; empty where it is not known or nothing is left."""
        now = time.monotonic()
        if self._start is None:
            self._start = (done, now)
        first, started = self._start
        if not self.total or done >= self.total:
            return ""
        seconds = (now - started) / (done - first) * (self.total - done) if done > first else guess
        return "" if seconds is None else f"{timedelta(seconds=round(seconds))} left"
