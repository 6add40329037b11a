"""What a student costs to run beside its teacher, as images and so sequences grow: time, and memory.

All models of a size are timed in one process, in turns, so that a busy machine slows them alike. Their
weights are random: what they are does not change the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..core.layout import Grid
from ..ecosystems.folders import model_folder
from ..ecosystems.timm import create_timm
from ..errors import UserError
from ..evaluation.cost import HALF, autocast, find_device, peak_memory_mb, reset_peak_memory
from ..subcloning.convert import build_student, student_models
from ..teachers.load import adapt_teacher
from ..teachers.teacher import Teacher
from ..teachers.timm_vit import check_known
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
        yield from _of_size(size, teacher, students, tokens, steps, where, precision)


def _of_size(
    size: int,
    name: str,
    students: Sequence[str],
    tokens: int,
    steps: int,
    device: torch.device,
    precision: str,
) -> list[dict[str, Any]]:
    """The rows of images of `size` pixels."""
    model: Any = create_timm(name, pretrained=False, img_size=size)
    if not model.patch_embed.num_patches:
        raise UserError(f"images of {size} pixels hold no patch of {name}; write larger sizes")
    teacher = adapt_teacher(model)
    layout = _layout(teacher)
    models = {"teacher": model, **{student: _student(student, teacher) for student in students}}
    images = min(max(1, tokens // layout.length), 1024)
    batch = torch.randn(images, *teacher.preprocessing.input_size, device=device)
    kinds = {each: _forward(made.to(device).eval(), batch, precision) for each, made in models.items()}
    peaks = {each: _peak(run, device) for each, run in kinds.items()}
    seconds = interleaved(kinds, steps, device)
    return [
        {
            "size": size,
            "tokens": getattr(made, "layout", layout).length,
            "images": images,
            "model": each,
            "seconds": seconds[each],
            "peak_memory_mb": peaks[each],
            "speed": seconds["teacher"] / seconds[each],
            "memory": None if peaks[each] is None else peaks[each] / peaks["teacher"],
        }
        for each, made in models.items()
    ]


def _student(name: str, teacher: Teacher) -> nn.Module:
    """A kind in the teacher's shape; a timm name as it is, whatever its patch, on the teacher's images."""
    if name not in student_models():
        return build_student(name, teacher)
    channels, height, width = teacher.preprocessing.input_size
    return create_timm(
        name, pretrained=False, img_size=(height, width), in_chans=channels, num_classes=teacher.num_classes
    )


def _layout(teacher: Teacher) -> Grid:
    layout = teacher.view.towers["image"].layout
    assert isinstance(layout, Grid), "a timm ViT reads images"
    return layout


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
