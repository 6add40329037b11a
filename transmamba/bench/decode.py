"""What a hybrid language model costs to run beside its teacher, as texts grow: writing a token, and reading a
prompt; time and memory.

Both are transformers' own classes with a static cache, or the hybrid ours with a cache of fixed size. At each
point they are timed in one process, in turns. A point at which memory is too small is a row that says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import UserError
from ..evaluation.cost import HALF, find_device
from .decode_caches import is_own
from .decode_models import (
    Decoding,
    Prefill,
    attention_layers,
    hybrid_config,
    make_model,
    read_model_config,
)
from .fits import measured

Kernels = Literal["transmamba", "transformers"]
PHASES = ("decode", "prefill")
# what runs a hybrid of our own class
OWN = "its own code"
# key -> what a table calls it, its width there, its format
COLUMNS: Mapping[str, tuple[str, int, str]] = {
    "phase": ("phase", 7, "s"),
    "length": ("tokens", 6, "d"),
    "batch": ("batch", 5, "d"),
    "model": ("model", 7, "s"),
    "attention_layers": ("attention", 9, "d"),
    "milliseconds": ("ms", 9, ".3f"),
    "tokens_per_second": ("tokens/s", 10, ".0f"),
    "cache_mb": ("cache MiB", 9, ".1f"),
    "peak_memory_mb": ("peak MiB", 8, ".0f"),
    "speed": ("speed", 6, ".2f"),
    "memory": ("memory", 6, ".2f"),
    "problem": ("", 0, "s"),
}
_FEW = 3  # prompts that are timed at most: they take as long as thousands of tokens


@dataclass(frozen=True, kw_only=True)
class Options:
    """How models are run; see `bench_decode`."""

    steps: int
    tokens: int
    graphs: bool
    compiled: bool


def bench_decode(
    teacher: str,
    keep: Sequence[int] = (),
    lengths: Sequence[int] = (2048, 16384),
    batches: Sequence[int] = (1, 16),
    *,
    student: str | None = None,
    window: int = 0,
    sinks: int = 0,
    phases: Sequence[str] = PHASES,
    steps: int = 10,
    tokens: int = 8,
    graphs: bool = False,
    compiled: bool = False,
    kernels: Kernels = "transmamba",
    device: str | None = None,
    precision: str = "bf16",
    ready: Callable[[Mapping[str, Any]], object] = lambda said: None,
) -> Iterator[dict[str, Any]]:
    """A row a phase, length, batch and model (`teacher`, `hybrid`): `milliseconds` of a token of each row of
    the batch, or of a prompt; `tokens_per_second` of all rows; `cache_mb`; `peak_memory_mb`, weights, cache
    and what is needed in between (None on a CPU); ratios to the teacher's: `speed` (its time / the model's)
    and `memory` (the model's peak / its). `problem` says that memory was too small, and that a model was
    timed alone for want of room beside the other.

    teacher: a language model's folder, id or config.json, of which only the shape is taken
    keep:    its layers that the hybrid keeps attention in; or
    student: a hybrid's folder or config.json
    window, sinks: of the hybrid that keeps `keep`: its other layers read so many tokens and, by a scan, what
        lies between; 0 for Mamba-2
    lengths: tokens in the cache when the last one is written, and of a prompt. Decoding, the cache is filled
        with random numbers, not by reading
    steps:   timed runs, of which the median counts; of prompts 3 at most
    tokens:  that a timed run writes, one after the other
    graphs:  a token is recorded as a CUDA graph
    compiled: a token goes through torch.compile
    kernels: Mamba-2 by `transmamba`'s kernels, or as `transformers` finds its own
    precision: of weights and caches: no (float32), bf16, fp16
    ready:   given once, when the models are there and before they are timed, what is alike in all rows

    Raises UserError for what cannot be made, and where a token cannot be recorded.
    """
    _check(lengths, batches, phases, steps, tokens, kernels, precision)
    where = find_device(device)
    if graphs and where.type != "cuda":
        raise UserError("graphs are CUDA's, and this runs on the CPU; leave --graphs out")
    if student is not None and keep:
        raise UserError(f"keep is {list(keep)}, but student {student} has its own layers; leave one out")
    if student is not None and (window or sinks):
        raise UserError(
            f"window is {window}, sinks {sinks}, but student {student} has its own; leave them out"
        )
    theirs = read_model_config(teacher)
    mine = hybrid_config(theirs, keep, window, sinks) if student is None else read_model_config(student)
    if compiled and is_own(mine):
        raise UserError(
            "a hybrid of our own class counts its tokens on the host, so that each would be compiled anew; "
            "leave --compile out, or write --graphs"
        )
    options = Options(steps=steps, tokens=tokens, graphs=graphs, compiled=compiled)
    dtype = HALF.get(precision, torch.float32)
    here = torch.cuda.device(where) if where.type == "cuda" else contextlib.nullcontext()
    # a hybrid of our own class runs its own code, whatever is asked
    kernels_used = contextlib.nullcontext() if is_own(mine) else _kernels(kernels, mine.model_type)
    with here, kernels_used, torch.no_grad():
        models = {"teacher": make_model(theirs, where, dtype), "hybrid": make_model(mine, where, dtype)}
        said = {
            "kernels": OWN if is_own(mine) else kernels,
            "graphs": graphs,
            "compiled": compiled,
            "precision": precision,
        }
        ready(said)
        for phase in phases:
            for length in lengths:
                for batch in batches:
                    for row in _rows(phase, models, length, batch, options, where):
                        yield {**row, **said}


def _rows(
    phase: str, models: Mapping[str, Any], length: int, batch: int, options: Options, device: torch.device
) -> list[dict[str, Any]]:
    """Of one point."""
    made = {name: _maker(phase, model, length, batch, options) for name, model in models.items()}
    steps, warmup = (options.steps, 2) if phase == "decode" else (min(options.steps, _FEW), 1)
    found = measured(made, steps, warmup, device, models)
    written = options.tokens if phase == "decode" else 1
    read = options.tokens if phase == "decode" else length
    rows = []
    first = found["teacher"]
    for name, each in found.items():
        seconds, peak = each["seconds"], each["memory_mb"]
        both = seconds is not None and first["seconds"] is not None
        known = peak is not None and first["memory_mb"] is not None
        rows.append(
            {
                "phase": phase,
                "length": length,
                "batch": batch,
                "model": name,
                "attention_layers": attention_layers(models[name].config),
                "milliseconds": None if seconds is None else 1000 * seconds / written,
                "tokens_per_second": None if seconds is None else batch * read / seconds,
                "cache_mb": each["cache_mb"],
                "peak_memory_mb": peak,
                "speed": first["seconds"] / seconds if both else None,
                "memory": peak / first["memory_mb"] if known else None,
                "problem": each["problem"],
            }
        )
    return rows


def _maker(phase: str, model: Any, length: int, batch: int, options: Options) -> Callable[[], Any]:
    if phase == "prefill":
        return lambda: Prefill(model, batch, length)
    return lambda: Decoding(
        model, batch, length, options.tokens, graphs=options.graphs, compiled=options.compiled
    )


def _kernels(kernels: Kernels, model_type: str) -> Any:
    """A context in which transformers' Mamba-2 runs on these."""
    if kernels == "transformers":
        return contextlib.nullcontext()
    from transmamba_kernels import patch_transformers

    try:
        return patch_transformers([model_type])
    except ValueError as error:
        raise UserError(f"{model_type} has no Mamba-2 to run on transmamba's kernels: {error}") from error


def _check(
    lengths: Sequence[int],
    batches: Sequence[int],
    phases: Sequence[str],
    steps: int,
    tokens: int,
    kernels: str,
    precision: str,
) -> None:
    numbers = [("steps", steps), ("tokens", tokens), *(("batch", batch) for batch in batches)]
    for name, value in numbers:
        if value < 1:
            raise UserError(f"{name} is {value}; write at least 1")
    least = tokens + 4  # a convolution's taps before them
    for length in lengths:
        if length < least:
            raise UserError(f"length is {length}; write at least {least}, the tokens that are written and 4")
    if not lengths or not batches or not phases or not set(phases) <= set(PHASES):
        raise UserError(
            f"phases is {list(phases)}, lengths {list(lengths)}, batches {list(batches)}; write at least one "
            f"of each, phases out of {', '.join(PHASES)}"
        )
    if kernels not in ("transmamba", "transformers"):
        raise UserError(f"kernels is {kernels!r}; write transmamba or transformers")
    if precision not in ("no", *HALF):
        raise UserError(f"precision is {precision!r}; write no, bf16 or fp16")


def decode_line(row: Mapping[str, Any]) -> str:
    """A row as a line of a table; the head of the table for one without values."""
    cells = []
    for key, (head, width, form) in COLUMNS.items():
        value = row[key]
        empty = "" if key == "problem" else "-"
        text = head if row["model"] is None else empty if value is None else format(value, form)
        cells.append(f"{text:>{width}}")
    return "  ".join(cells).rstrip()
