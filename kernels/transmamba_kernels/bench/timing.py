"""Medians of interleaved runs, bytes kept for the backward, peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARMUP = 3
# A candidate that takes longer than this for all rounds of a phase gets fewer of them.
BUDGET_S = 4.0
FEWEST = 3
# Written between runs: it empties the caches, and gives the CPU time to queue the launches that are measured.
FLUSH_BYTES = 2**30


class Timer:
    """Seconds of calls on one device: CUDA events on a GPU, the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.flush = torch.empty(FLUSH_BYTES if self.cuda else 0, dtype=torch.uint8, device=device)

    def median(self, call: Callable[[], Any], rounds: int) -> float:
        return self.medians({"": call}, rounds)[""][0]

    def medians(self, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, int]]:
        """(median seconds, rounds) of every call; the calls take turns, so that a busy machine slows all."""
        turns = {}
        for name, call in calls.items():
            for _ in range(WARMUP):
                call()
            seconds = self._once(call)
            turns[name] = max(FEWEST, min(rounds, int(BUDGET_S / max(seconds, 1e-9))))
        taken: dict[str, list[Any]] = {name: [] for name in calls}
        for turn in range(max(turns.values(), default=0)):
            for name, call in calls.items():
                if turn < turns[name]:
                    taken[name].append(self._events(call) if self.cuda else self._once(call))
        if self.cuda:
            torch.cuda.synchronize()
        found = {}
        for name, marks in taken.items():
            times = [1e-3 * a.elapsed_time(b) for a, b in marks] if self.cuda else marks
            found[name] = (statistics.median(times), len(times))
        return found

    def _events(self, call: Callable[[], Any]) -> tuple[Any, Any]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        begin.record()
        call()
        end.record()
        return begin, end

    def _once(self, call: Callable[[], Any]) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began


def graphed(call: Callable[[], Any]) -> Callable[[], Any] | None:
    """A warmed-up call as a CUDA graph's replay; None where that fails. Not on a default stream."""
    try:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except Exception:
        torch.cuda.synchronize()
        return None
    return graph.replay


def saved_bytes(call: Callable[[], Any], inputs: Sequence[Tensor]) -> int:
    """Bytes of the storages that autograd keeps for the backward of a call, its inputs' own left out."""
    ours = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(kept.values())


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most memory allocated during a call beyond what was allocated before, on the current GPU."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before
