"""What a student costs to run beside its teacher, as images and so sequences grow: time, and memory.

All models of a size are timed in one process, in turns, so that a busy machine slows them alike. Their
weights are random: what they are does not change the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..api import build_student, find_device
from ..ecosystems.folders import model_folder
from ..errors import UserError
from ..evaluation.classification import HALF, autocast, peak_memory_mb, reset_peak_memory
from ..teachers.teacher import adapt_teacher
from ..teachers.timm_vit import check_known, create_timm
from .step import interleaved

# key -> what a table calls it, its width there, its format
COLUMNS: Mapping[str, tuple[str, int, str]] = {
    "size": ("pixels", 6, "d"),
    "tokens": ("tokens", 6, "d"),
    "images": ("images", 6, "d"),
    "model": ("model", 24, "s"),
    "seconds": ("seconds", 9, ".5f"),
    "peak_memory_mb": ("MiB", 8, ".0f"),
    "speed": ("speed", 6, ".2f"),
    "memory": ("memory", 6, ".2f"),
}


def bench_inference(
    teacher: str,
    students: Sequence[str] = ("vim", "ssd_vit"),
    sizes: Sequence[int] = (224, 448, 896, 1792),
    *,
    tokens: int | None = None,
    steps: int = 10,
    device: str | None = None,
    precision: str = "bf16",
) -> Iterator[dict[str, Any]]:
    """A row a size and model: `size` in pixels, the model's `tokens` of an image, `images` a batch, `seconds`
    a batch (median of `steps`), `peak_memory_mb` above weights and batch (None on a CPU), and both as ratios
    to the teacher's: `speed` (its seconds / the model's) and `memory` (the model's peak / its).

    teacher:  a timm ViT by name, or its folder; attention as timm runs it (scaled_dot_product_attention)
    students: `vim`, `ssd_vit` of the teacher's shape, or timm names of ours
    tokens:   of a batch of the teacher's: so many images as make them, from 1 to 1,024; left out: 65,536 on a
        GPU, else 1,024
    precision: of autocast: no, bf16, fp16

    Raises UserError for names or sizes that no model can be made of.
    """
    if precision not in ("no", *HALF):
        raise UserError(f"precision is {precision!r}; write no, bf16 or fp16")
    where = find_device(device)
    tokens = (2**16 if where.type == "cuda" else 2**10) if tokens is None else tokens
    for key, value in (("steps", steps), ("tokens", tokens), *(("sizes", size) for size in sizes)):
        if value < 1:
            raise UserError(f"{key} is {value}; write at least 1")
    if not model_folder(teacher):
        check_known(teacher)
    for size in sizes:
        model: Any = create_timm(teacher, pretrained=False, img_size=size)
        guide = adapt_teacher(model)
        if guide.layout.length <= len(guide.layout.special):
            raise UserError(f"images of {size} pixels hold no patch of {teacher}; write larger sizes")
        models = {"teacher": model, **{name: build_student(name, guide) for name in students}}
        images = min(max(1, tokens // guide.layout.length), 1024)
        batch = torch.randn(images, *guide.preprocessing.input_size, device=where)
        kinds = {name: _forward(model.to(where).eval(), batch, precision) for name, model in models.items()}
        peaks = {name: _peak(run, where) for name, run in kinds.items()}
        seconds = interleaved(kinds, steps, where)
        for name, made in models.items():
            yield {
                "size": size,
                "tokens": getattr(made, "layout", guide.layout).length,
                "images": images,
                "model": name,
                "seconds": seconds[name],
                "peak_memory_mb": peaks[name],
                "speed": seconds["teacher"] / seconds[name],
                "memory": None if peaks[name] is None else peaks[name] / peaks["teacher"],
            }
        del models, kinds, model, made, guide


def inference_line(row: Mapping[str, Any]) -> str:
    """A row as a line of a table; the head of the table for one without values."""
    cells = []
    for key, (head, width, form) in COLUMNS.items():
        value = row[key]
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
