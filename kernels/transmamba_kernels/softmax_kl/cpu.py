"""The divergence in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..backend import compute_dtype


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Arguments as in `transmamba_kernels.softmax_kl`; (N,)."""
    dtype = compute_dtype(student, teacher)
    ours, theirs = (F.log_softmax(x.to(dtype) / temperature, dim=-1) for x in (student, teacher))
    terms = F.kl_div(ours, theirs, reduction="none", log_target=True)
    # what the teacher never says adds nothing, whatever the student has there
    return terms.masked_fill(theirs.exp() == 0, 0).sum(-1)
