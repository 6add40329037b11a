"""What others put behind an image tower's layers, such as cross-Mamba."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# takes a layer's number and the stream (B, L, D) behind it; gives the stream that goes on
After = Callable[[int, Tensor], Tensor]


def followed(x: Tensor, k: int, after: After | None) -> Tensor:
    """The stream behind layer k."""
    return x if after is None else after(k, x)
