"""Models timed in turns where memory holds them all, alone where it does not, and not at all where it is too
small even so."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..evaluation.cost import peak_memory_mb, reset_peak_memory
from .decode_caches import cache_bytes
from .decode_models import out_of_memory
from .step import interleaved


@dataclass
class Ready:
    """run: a `Decoding` or a `Prefill`, which has run once; memory_mb: at most, weights and cache included;
    None on a CPU"""

    run: Any
    memory_mb: float | None


def measured(
    made: Mapping[str, Callable[[], Any]],
    steps: int,
    warmup: int,
    device: torch.device,
    models: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """By model `seconds`, `memory_mb`, `cache_mb` and `problem`. All that fit beside each other are timed in
    turns; one that fits by itself alone afterwards."""
    found = {name: _found(None, None, None, "out of memory") for name in made}
    together: dict[str, Ready] = {}
    alone = []
    for name, make in made.items():
        if not _prepare(name, make, models[name], device, together) and together:
            alone.append(name)
    found |= _timed(together, steps, warmup, device, None)
    for name in alone:
        together.clear()
        _free(device)
        if _prepare(name, made[name], models[name], device, together):
            found |= _timed(together, steps, warmup, device, "not in turns: no room beside the other")
    together.clear()
    _free(device)
    return found


def _timed(
    ready: Mapping[str, Ready], steps: int, warmup: int, device: torch.device, problem: str | None
) -> dict[str, dict[str, Any]]:
    """What was found of these, in turns."""
    runs = {name: each.run for name, each in ready.items()}
    before = {name: run.rewind for name, run in runs.items()}
    seconds = interleaved(runs, steps, device, warmup=warmup, before=before)
    return {
        name: _found(seconds[name], each.memory_mb, cache_bytes(each.run.cache) / 2**20, problem)
        for name, each in ready.items()
    }


def _found(
    seconds: float | None, memory_mb: float | None, cache_mb: float | None, problem: str | None
) -> dict[str, Any]:
    return {"seconds": seconds, "memory_mb": memory_mb, "cache_mb": cache_mb, "problem": problem}


def _prepare(
    name: str, make: Callable[[], Any], model: Any, device: torch.device, into: dict[str, Ready]
) -> bool:
    """Make it, run it once and put it there; False, and nothing of it is left, where memory is too small."""
    lying = torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    reset_peak_memory(device)
    try:
        run = make()
        run.rewind()
        run()
        memory = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
            memory = peak_memory_mb(device) - lying + weights
        into[name] = Ready(run, memory)
        return True
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    run = None  # and the error is gone, which held what was made
    _free(device)
    return False


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
