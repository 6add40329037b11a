"""How far a view is from its module, over every output and every residual stream."""

from __future__ import annotations

from typing import Any

from transmamba import adapt_teacher
from transmamba.config.registry import TEACHERS
from transmamba.teachers.check import differences
from transmamba.teachers.teacher import Teacher


def measured(module: Any, teacher: str) -> tuple[Teacher, dict[str, float]]:
    """The module's teacher, by the registered adapter `teacher`, and how far each output is."""
    made = adapt_teacher(module)
    return made, differences(made, TEACHERS[teacher].original(module))


def assert_exact(module: Any, teacher: str, blocks: int, most: float = 1e-5) -> Teacher:
    """Every stream and the logits, or the last stream, within `most` of the module's largest number."""
    made, found = measured(module, teacher)
    wanted = {f"stream.image.{t}" for t in range(blocks)} | {"logits" if made.view.heads else "end.image"}
    assert found.keys() == wanted and max(found.values()) < most, found
    return made
