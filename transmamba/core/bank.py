"""What coupled losses read of a batch, or of all batches of a step: embeddings, groups and learnt numbers."""

from __future__ import annotations

from torch import Tensor

from .batch import Batch
from .output import Output

# embeddings (B, E) by tower, the teacher's as `teacher/image`; `group` (B,) int64 where the batch says which
# rows are of one image; learnt numbers as `scale`, the teacher's as `teacher/scale`
Bank = dict[str, Tensor]


def bank_of(student: Output, teacher: Output | None, batch: Batch) -> tuple[Bank, Bank]:
    """What there is a row (embeddings of both models, groups), and the numbers of both."""
    rows, numbers = dict(student.embeddings), dict(student.scalars)
    if teacher is not None:
        rows |= {f"teacher/{name}": value for name, value in teacher.embeddings.items()}
        numbers |= {f"teacher/{name}": value for name, value in teacher.scalars.items()}
    if "group" in batch.targets:
        rows["group"] = batch.targets["group"]
    return rows, numbers
