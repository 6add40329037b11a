"""How exactly products of float32 matrices are computed on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["no", "tf32", "bf16", "fp16"]


def autocast_of(precision: Precision) -> str:
    """What autocast is told: tf32 is none of its."""
    return "no" if precision == "tf32" else precision


@contextlib.contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """With tf32 products of float32 may read what they multiply with 10 bits of mantissa, and add up in
    float32 (torch's `high`). It is one setting for the whole process, put back afterwards; with another
    precision it stays as whoever called has it."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
