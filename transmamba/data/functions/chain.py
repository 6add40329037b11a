"""A network whose neurons are shown as steps of a chain of thought (Li et al., "Dissecting Chain-of-Thought",
arXiv 2305.18869); in arXiv 2402.04248 as CoT-I/O, of which nothing was released."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...config.registry import FUNCTIONS
from ...core.points import PointShape
from .prompts import OWN, TASK, Drawn, Examples, Prompts, below_one


@FUNCTIONS.register("chain_of_thought")
@dataclass(frozen=True, kw_only=True)
class ChainOfThought(Examples):
    """x_1, s_1, y_1, x_2 ... with s = relu(W x), W (h, d) of variance 2 / h, and y = v s, v normal; s is
    asked at x, and y at s. A token has dimensions of its own for x, s and y, so that each is read and
    predicted by itself.

    d: dimensions
    points: examples of a prompt
    hidden: h, neurons
    """

    steps: ClassVar[int] = 2

    d: int = 10
    points: int = 101
    hidden: int = 8

    def problems(self) -> list[str]:
        return below_one(self, "hidden")

    @property
    def shape(self) -> PointShape:
        outputs = self.hidden + 1
        return PointShape(width=self.d + outputs, outputs=outputs, length=3 * self.points)

    @property
    def moments(self) -> Sequence[float]:
        """Second moments of s, d / h each, and of y, d: y would drown s otherwise, and who says 0 would not
        miss 100 %."""
        return (*(self.d / self.hidden,) * self.hidden, float(self.d))

    def place_of(self, tokens: Tensor) -> Tensor:
        return tokens // 3

    def asks(self, drawn: Drawn) -> Tensor:
        at = torch.arange(3 * self.points, device=drawn.dims.device) % 3 < 2
        return at.expand(len(drawn.dims), -1)

    def rolled(self, points: Tensor, made: Tensor) -> Tensor:
        """With s of the last example as the model said it."""
        last = 3 * (self.points - 1)
        points = points.clone()
        points[:, last + 1, self.d : self.d + self.hidden] = made[:, last, : self.hidden]
        return points

    def make(self, drawn: Drawn) -> Prompts:
        h = self.hidden
        x = self.inputs(drawn)
        W = (2 / h) ** 0.5 * drawn.rows.normal(TASK, h, self.d)
        s = torch.einsum("bnd,bhd->bnh", x, W).relu()
        y = torch.einsum("bnh,bh->bn", s, drawn.rows.normal(OWN, h))[..., None]
        points = x.new_zeros(len(x), self.points, 3, self.d + h + 1)
        points[:, :, 0, : self.d], points[:, :, 1, self.d : -1], points[:, :, 2, -1:] = x, s, y
        values = x.new_zeros(len(x), self.points, 3, h + 1)
        values[:, :, 0, :h], values[:, :, 1, h:] = s, y
        asked = torch.zeros(3, h + 1, dtype=torch.bool, device=x.device)
        asked[0, :h], asked[1, h] = True, True
        asked = asked.expand_as(values)
        return Prompts(points.flatten(1, 2), values.flatten(1, 2), asked.flatten(1, 2))
