"""Whether what writes for a student is the student. transformers' classes change: one that computes
otherwise takes the same tensors without a word, and only what is written is wrong (5.17 to 5.22 did so to
Bamba's norms: `ecosystems/gated_norms.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.batch import rows_of
from ...ecosystems.generation import evaluating, next_logits
from ...errors import UserError

_ROWS = 4
# of the logits' own size; float32 is off by 1e-5 (1e-3 where products are TF32), the norms were by 0.1 to 1
_FAR, _FAR_IN_HALF = 0.05, 0.2


def check_same(student: Any, writer: Any, inputs: Mapping[str, Tensor]) -> None:
    """Raises UserError where `writer`, a model of transformers of a student's tensors, foretells another next
    word than the student after each of the first rows of `text` (B, L), whose padding lies before it.

    In the weights' own precision, whatever autocast the caller computes in, so that rounding is no excuse;
    the nearest row counts, for an expert that is chosen by a hair may be another one.
    """
    few = rows_of(inputs, slice(0, _ROWS))
    device = next(student.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, enabled=False), evaluating(student):
        logits = student.run(few).logits
        assert logits is not None, "there is text"
        mine = logits.head(logits.hidden[:, -1]).double()
        theirs = next_logits(writer, few).double()
    distance = ((theirs - mine).norm(dim=-1) / mine.norm(dim=-1)).min().item()
    if distance > (_FAR if _whole(student) else _FAR_IN_HALF):
        import transformers

        raise UserError(
            f"transformers {transformers.__version__} makes another model of this student's tensors: after "
            f"the same words the logits of its {type(writer).__name__} are {distance:.0%} of their size away "
            "from the student's, and so would be all that it writes; install another version of transformers "
            "(5.23 is known to agree)"
        )


def _whole(student: Any) -> bool:
    return all(p.dtype.itemsize >= torch.float32.itemsize for p in student.parameters())
