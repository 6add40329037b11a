"""Sparse parity in context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...config.registry import FUNCTIONS
from .prompts import TASK, Drawn, Examples, X, above, below_one


@FUNCTIONS.register("sparse_parity")
@dataclass(frozen=True, kw_only=True)
class SparseParity(Examples):
    """y is the product of k dimensions of x, which is of 1 and -1; they are drawn for each prompt.

    d: dimensions
    points: examples of a prompt
    k: dimensions that count
    as_released: the prompts of a step have the same k, as in the paper's released code
    """

    signs: ClassVar[bool] = True

    d: int = 10
    points: int = 140
    k: int = 2
    as_released: bool = False

    def problems(self) -> list[str]:
        return below_one(self, "k") or above(self, "k", "d")

    @property
    def least_dims(self) -> int:
        return self.k

    def inputs(self, drawn: Drawn) -> Tensor:
        x = drawn.rows.signs(X, self.points, self.d)
        return torch.where(drawn.alive(self.d)[:, None], x, 0)

    def outputs(self, drawn: Drawn, x: Tensor) -> Tensor:
        draws = drawn.shared if self.as_released else drawn.rows
        chosen = draws.subset(TASK, self.k, drawn.dims, self.d)  # (B, k)
        return x.gather(2, chosen[:, None].expand(-1, self.points, -1)).prod(dim=-1)
