"""What a student costs to run beside its teacher, as images and so sequences grow: time, and memory.

All models of a size are timed in one process, in turns, so that a busy machine slows them alike. Their
weights are random: what they are does not change the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .api import build_student
from .bench import interleaved
from .errors import UserError
from .evaluation import peak_memory_mb, reset_peak_memory
from .teacher import adapt_teacher
from .teachers.timm_vit import create_timm


def bench_inference(
    teacher: str,
    students: Sequence[str] = ("vim", "ssd_vit"),
    sizes: Sequence[int] = (224, 448, 896, 1792),
    *,
    tokens: int = 2**16,
    steps: int = 10,
    device: str | None = None,
    precision: str = "bf16",
) -> list[dict[str, Any]]:
    """A row a size and model: `size` in pixels, `tokens` an image, `images` a batch, `seconds` a batch
    (median of `steps`), `peak_memory_mb` above weights and batch, and both as ratios to the teacher's:
    `speed` (its seconds / the model's) and `memory` (the model's peak / its).

    teacher:  a timm ViT by name, or its folder; attention as timm runs it (scaled_dot_product_attention)
    students: `vim`, `ssd_vit` of the teacher's shape, or timm names of ours
    tokens:   of a batch: so many images as make them, from 1 to 1,024
    precision: of autocast: no, bf16, fp16

    Raises UserError for names or sizes that no model can be made of.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = []
    for size in sizes:
        model = create_timm(teacher, pretrained=False, img_size=size)
        guide = adapt_teacher(model)
        models = {"teacher": model, **{name: build_student(name, guide) for name in students}}
        length = guide.layout.length
        images = min(max(1, tokens // length), 1024)
        batch = torch.randn(images, *guide.preprocessing.input_size, device=where)
        kinds = {name: _forward(model.to(where).eval(), batch, precision) for name, model in models.items()}
        peaks = {name: _peak(run, where) for name, run in kinds.items()}
        seconds = interleaved(kinds, steps, where)
        rows += [
            {
                "size": size,
                "tokens": length,
                "images": images,
                "model": name,
                "seconds": seconds[name],
                "peak_memory_mb": peaks[name],
                "speed": seconds["teacher"] / seconds[name],
                "memory": peaks[name] / peaks["teacher"] if peaks["teacher"] else None,
            }
            for name in models
        ]
        del models, kinds, model, guide
    return rows


def inference_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, a size after the other."""
    heads = ("pixels", "tokens", "images", "model", "ms", "MiB", "speed", "memory")
    widths = (6, 6, 6, 10, 9, 8, 6, 6)
    lines = ["  ".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for row in rows:
        cells = [str(row[key]) for key in ("size", "tokens", "images", "model")]
        cells += [f"{1e3 * row['seconds']:.2f}", f"{row['peak_memory_mb']:.0f}", f"{row['speed']:.2f}"]
        cells.append("-" if row["memory"] is None else f"{row['memory']:.2f}")
        lines.append("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def _forward(model: nn.Module, batch: torch.Tensor, precision: str) -> Callable[[], None]:
    half = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}.get(precision, "unknown")
    if half == "unknown":
        raise UserError(f"precision is {precision!r}; write no, bf16 or fp16")

    def run() -> None:
        autocast = (
            contextlib.nullcontext() if half is None else torch.autocast(batch.device.type, dtype=half)  # type: ignore[arg-type]
        )
        with torch.inference_mode(), autocast:
            model(batch)

    return run


def _peak(run: Callable[[], None], device: torch.device) -> float:
    """MiB above what lies there before, of the second run: the first may try kernels out."""
    run()
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    reset_peak_memory(device)
    before = torch.cuda.memory_allocated(device) / 2**20
    run()
    torch.cuda.synchronize(device)
    return peak_memory_mb(device) - before
