"""Fewer tokens of a picture: its patches averaged over the cells of a coarser grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class CellMeans:
    """The mean of each of side x side cells of a grid of rows x columns patches.

    A cell is that of an adaptive average pooling: rows floor(i rows / side) to ceil((i + 1) rows / side), so
    that cells are equal and disjoint where the grid divides, and share a row or column of patches where not.
    """

    rows: int
    columns: int
    side: int

    @classmethod
    def of(cls, rows: int, columns: int, tokens: int | None, key: str) -> CellMeans | None:
        """Of so many tokens a picture; None where it stays as it is. Raises UserError, which names `key`, for
        a number that is no square, or for which the grid is too small."""
        if tokens is None or (rows == columns and tokens == rows * columns):
            return None
        side = math.isqrt(max(tokens, 0))
        most = min(rows, columns)
        if side < 1 or side * side != tokens or side > most:
            raise UserError(
                f"{key} is {tokens}, and a picture has {rows} x {columns} patches; write a square number, "
                f"1 to {most * most}"
            )
        return cls(rows, columns, side)

    @property
    def tokens(self) -> int:
        """Of a picture, N."""
        return self.side**2

    def __call__(self, x: Tensor) -> Tensor:
        """(P, side ** 2, D), row by row, of patches (P, rows * columns, D)."""
        grid = x.mT.unflatten(-1, (self.rows, self.columns))
        return F.adaptive_avg_pool2d(grid, self.side).flatten(2).mT
