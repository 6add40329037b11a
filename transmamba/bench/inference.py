"""What a student costs to run beside its teacher, as images and so sequences grow: time, and memory.

All models of a size are timed in one process, in turns, so that a busy machine slows them alike. Their
weights are random: what they are does not change the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..evaluation.cost import HALF, autocast, find_device, peak_memory_mb, reset_peak_memory
from .models import Models, Timed, read_students
from .step import interleaved

# key -> what a table calls it, its width there, its format
COLUMNS: Mapping[str, tuple[str, int, str]] = {
    "size": ("pixels", 6, "d"),
    "tokens": ("tokens", 6, "d"),
    "images": ("images", 6, "d"),
    "model": ("model", 24, "s"),
    "seconds": ("seconds", 9, ".5f"),
    "milliseconds": ("ms/image", 9, ".4f"),
    "peak_memory_mb": ("MiB", 8, ".0f"),
    "speed": ("speed", 6, ".2f"),
    "memory": ("memory", 6, ".2f"),
}


def bench_inference(
    teacher: str,
    students: Sequence[str] = ("vim", "ssd_vit"),
    sizes: Sequence[int] = (224, 448, 896, 1792),
    *,
    options: Sequence[str] = (),
    tokens: int | None = None,
    steps: int = 10,
    device: str | None = None,
    precision: str = "bf16",
    ready: Callable[[], object] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """A row a size and model: `size` in pixels, the model's `tokens` of an image, `images` a batch, `seconds`
    a batch (median of `steps`), `milliseconds` an image, `peak_memory_mb` above weights and batch (None on a
    CPU), and both as ratios to the teacher's: `speed` (its seconds / the model's) and `memory` (the model's
    peak / its).

    teacher:  a timm ViT by name, or its folder; attention as timm runs it (scaled_dot_product_attention). Or
        an open_clip name, folder or id: then the image towers are timed, its own and those of clip students
    students: `vim`, `ssd_vit` of the teacher's shape, or timm names of ours; beside an open_clip teacher what
        becomes of its image tower, `vim`, `ssd_vit` or `vit`. Each with options of its constructor behind
        colons: `vim:gate_bias=true:embed_dim=128`
    options:  key=value for the model_cfg of an open_clip teacher: `vision_cfg.layers=8`
    tokens:   of a batch of the teacher's: so many images as make them, from 1 to 1,024; left out: 65,536 on a
        GPU, else 1,024
    precision: of autocast: no, bf16, fp16
    ready:    called once, when the first models are there and before they are timed

    Raises UserError for names or sizes that no model can be made of.
    """
    if precision not in ("no", *HALF):
        raise UserError(f"precision is {precision!r}; write no, bf16 or fp16")
    where = find_device(device)
    tokens = (2**16 if where.type == "cuda" else 2**10) if tokens is None else tokens
    for key, value in (("steps", steps), ("tokens", tokens), *(("sizes", size) for size in sizes)):
        if value < 1:
            raise UserError(f"{key} is {value}; write at least 1")
    models = Models(teacher, read_students(students), options)
    for number, size in enumerate(sizes):
        timed, shape = models.at(size)
        if number == 0:
            ready()
        yield from _of_size(size, timed, shape, tokens, steps, where, precision)


def _of_size(
    size: int,
    timed: Mapping[str, Timed],
    shape: Sequence[int],
    tokens: int,
    steps: int,
    device: torch.device,
    precision: str,
) -> list[dict[str, Any]]:
    """The rows of images of `size` pixels."""
    images = min(max(1, tokens // timed["teacher"].tokens), 1024)
    batch = torch.randn(images, *shape, device=device)
    kinds = {each: _forward(made.module.to(device).eval(), batch, precision) for each, made in timed.items()}
    peaks = {each: _peak(run, device) for each, run in kinds.items()}
    seconds = interleaved(kinds, steps, device)
    return [
        {
            "size": size,
            "tokens": made.tokens,
            "images": images,
            "model": each,
            "seconds": seconds[each],
            "milliseconds": 1000 * seconds[each] / images,
            "peak_memory_mb": peaks[each],
            "speed": seconds["teacher"] / seconds[each],
            "memory": None if peaks[each] is None else peaks[each] / peaks["teacher"],
        }
        for each, made in timed.items()
    ]


def inference_line(row: Mapping[str, Any], longest: int = 0) -> str:
    """A row as a line of a table; the head of the table for one without values. `longest` of the models'
    names has so many letters."""
    cells = []
    for key, (head, width, form) in COLUMNS.items():
        value, width = row[key], max(width, longest) if key == "model" else width
        text = head if row["model"] is None else "-" if value is None else format(value, form)
        cells.append(f"{text:>{width}}")
    return "  ".join(cells)


def _forward(model: nn.Module, batch: torch.Tensor, precision: str) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), autocast(batch.device, precision):
            model(batch)

    return run


def _peak(run: Callable[[], None], device: torch.device) -> Any:
    """MiB above what lies there before, of the second run: the first may try kernels out. None on a CPU."""
    run()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    reset_peak_memory(device)
    before = torch.cuda.memory_allocated(device) / 2**20
    run()
    torch.cuda.synchronize(device)
    return peak_memory_mb(device) - before
