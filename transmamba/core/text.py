"""How a text becomes a model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Texts as numbers.

    ids:       (B, L) int64
    mask:      (B, L) bool, which of them are real; None for a model that reads its padding too
    truncated: how many of the texts were longer than the model reads
    """

    ids: Tensor
    mask: Tensor | None
    truncated: int


class Tokenizer(Protocol):
    """Frozen, picklable and equal where it does the same: two models that read alike share their batches.

    context: tokens of a row, L
    """

    @property
    def context(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Every row of length L; longer texts are cut, as their own library cuts them."""

    def save(self, folder: Path) -> None:
        """Write the files that it is made of, if there are any."""
