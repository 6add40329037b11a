"""The divergence word by word, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backend import compute_dtype


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Arguments as in `transmamba_kernels.softmax_kl`; (N,)."""
    dtype = compute_dtype(student, teacher)
    rows = [
        _row(made, wanted)
        for made, wanted in zip(student.to(dtype) / temperature, teacher.to(dtype) / temperature, strict=True)
    ]
    return torch.stack(rows) if rows else student.new_zeros(0, dtype=dtype)


def _row(made: Tensor, wanted: Tensor) -> Tensor:
    """Of logits (V,) at temperature 1."""
    ours, theirs = made - made.logsumexp(0), wanted - wanted.logsumexp(0)
    terms = [p.exp() * (p - q) for p, q in zip(theirs, ours, strict=True) if p.exp() != 0]
    return torch.stack(terms).sum()
