"""What of a Mamba-2 layer's start after attention the teacher's weights do not say, found on some prompts as
hybrid_lm finds it (`hybrid_lm.start`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...core.output import Context
from ..hybrid_lm.start import Walk, begin
from .layers import Mamba2

if TYPE_CHECKING:
    from .model import SequenceModel

# prompts that are looked at
_ROWS = 32


def calibrate(
    student: SequenceModel,
    walk: Walk,
    kinds: Sequence[str],
    prompts: Sequence[Mapping[str, Tensor]],
    layers: int,
) -> None:
    """Open the gates, and scale the outputs, of those of the first `layers` layers that are Mamba-2 in
    attention's place."""
    todo: dict[int, list[int]] = {}
    for k, s in student.sources(kinds).items():
        if k < layers and kinds[s] == "attention" and isinstance(student.layer(k).mixer, Mamba2):
            todo.setdefault(s, []).append(k)
    rows = [{"points": row[None]} for each in prompts for row in each["points"]][:_ROWS]
    if not todo or not rows:
        return
    seen: dict[str, list[Tensor]] = {}

    def observe(_: int, tower: str, s: int, name: str, tensor: Tensor) -> None:
        if tower == "points" and s in todo and name in ("input", "output"):
            seen.setdefault(name, []).append(tensor)

    for tower, s in walk(rows, observe):
        for k in todo.get(s, []) if tower == "points" else ():
            layer = student.layer(k)
            begin(layer.norm, layer.mixer, seen["input"], seen["output"], None, [Context()] * len(rows))
        seen.clear()
