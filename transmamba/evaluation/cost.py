"""What a model costs: how fast it answers, and how much memory it takes."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from ..errors import UserError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

T = TypeVar("T")


def autocast(device: torch.device, precision: str) -> Any:
    """A context in which a model computes in that precision; float32 for any that is no half."""
    half = HALF.get(precision)
    return contextlib.nullcontext() if half is None else torch.autocast(device.type, dtype=half)


def find_device(name: str | None) -> torch.device:
    """`name`, or a GPU where there is one. Raises UserError for one that this machine lacks."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # an unknown kind, or one that this machine lacks
        known = "cuda or cpu" if torch.cuda.is_available() else "cpu, for no GPU is found"
        raise UserError(f"device {name!r} cannot be used here; write {known}") from error


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """MiB at most allocated on a GPU since the last reset; on the CPU, the process's peak so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@dataclass(frozen=True)
class Cost:
    """Of one model: samples per second of all processes together, peak memory in MiB of the hungriest."""

    samples_per_second: float = 0.0
    peak_memory_mb: float = 0.0

    @classmethod
    def of_all(cls, costs: list[Cost]) -> Cost:
        """What processes that worked side by side cost together."""
        return cls(
            sum(cost.samples_per_second for cost in costs),
            max((cost.peak_memory_mb for cost in costs), default=0.0),
        )


@dataclass
class Timed:
    """One batch: how many rows it has, and the seconds that were spent on it so far."""

    rows: int
    seconds: float = 0.0
    work: list[Callable[[], Any]] = field(default_factory=list)


class Clock:
    """Times a model's work on batches, with the device waited for.

    A batch may take several pieces of work (a tower, then a head over rows of tokens); other models may work
    in between, on the same device: their time and memory are not counted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._batches: list[Timed] = []
        self._peak = 0.0

    def batch(self, rows: int) -> Timed:
        """The next batch, to be given to `run` with each piece of its work."""
        if self._batches and rows == self._batches[0].rows:
            # a second full batch is timed: what could repeat the first may go, with the memory that it holds
            self._batches[0].work.clear()
        self._batches.append(Timed(rows))
        return self._batches[-1]

    def run(self, batch: Timed, work: Callable[[], T]) -> T:
        """Do a piece of a batch's work, on the clock."""
        reset_peak_memory(self.device)
        started = self._now()
        made = work()
        batch.seconds += self._now() - started
        self._peak = max(self._peak, peak_memory_mb(self.device))
        if batch is self._batches[0] and len(self._batches) == 1:
            batch.work.append(work)
        return made

    def cost(self) -> Cost:
        """Samples per second are those of full batches without the first, in which everything is slow once;
        where there is no other full batch, the first is done again."""
        if not self._batches:
            return Cost(0.0, peak_memory_mb(self.device))
        first, *others = self._batches
        timed = [batch for batch in others if batch.rows == first.rows] or [self._repeat(first)]
        seconds = sum(batch.seconds for batch in timed)
        rate = sum(batch.rows for batch in timed) / seconds if seconds else 0.0
        return Cost(rate, self._peak)

    def _repeat(self, batch: Timed) -> Timed:
        started = self._now()
        for work in batch.work:
            work()
        return Timed(batch.rows, self._now() - started)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
