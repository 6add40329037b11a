"""How exactly products of float32 matrices are computed on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from ..core.products import float32_matmul

Precision = Literal["no", "tf32", "bf16", "fp16"]


def autocast_of(precision: Precision) -> str:
    """What autocast is told: tf32 is none of its."""
    return "no" if precision == "tf32" else precision


@contextlib.contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """With tf32 `core.products`' `high`; with another precision it stays as whoever called has it."""
    with float32_matmul("high") if precision == "tf32" else contextlib.nullcontext():
        yield
