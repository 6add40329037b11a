"""Sizes of which no student can be made, said before timm or torch stumble over them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any


def check_sizes(img_size: Any, patch_size: Any, stride: int | None, **counts: int) -> None:
    """Raises ValueError for sizes of which no model can be made."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < 1:
            raise ValueError(f"{name} is {count}; write a whole number of at least 1")
    for name, sides in (("img_size", img_size), ("patch_size", patch_size)):
        if not all(isinstance(side, Integral) and int(side) >= 1 for side in pair(sides)):
            raise ValueError(f"{name} is {sides}; write pixels, or [height, width]")
    if stride is not None and not 1 <= stride <= min(pair(patch_size)):
        raise ValueError(f"stride is {stride}; write pixels from 1 to the patch's {min(pair(patch_size))}")
    if any(side < patch for side, patch in zip(pair(img_size), pair(patch_size), strict=True)):
        raise ValueError(f"img_size is {img_size}, smaller than a patch of {patch_size}; write a larger one")


def pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, Sequence) and len(value) == 2 else (value, value)


def check_rates(**rates: float) -> None:
    """Raises ValueError for what is no probability below 1."""
    for name, rate in rates.items():
        if not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"{name} is {rate!r}; write a number from 0 to below 1")


def check_pooling(global_pool: str) -> None:
    if global_pool not in ("", "token", "avg"):
        raise ValueError(f"global_pool is {global_pool!r}; write 'token', 'avg' or ''")
