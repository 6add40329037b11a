"""How exact products of float32 are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def float32_matmul(precision: str) -> Iterator[None]:
    """torch's `highest`, as float32 has them, or `high`: what they multiply is read with 10 bits of mantissa,
    and added up in float32. It is one setting for the whole process, put back afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
