"""Linear functions among examples that have nothing to do with them: orthogonal outliers, and many.

Of arXiv 2402.04248; nothing is asked at outliers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...config.registry import FUNCTIONS
from .prompts import OWN, Drawn, Prompts, asked_where, in_turn, tokens_in_turn
from .regression import Linear

# of draws
_WHICH, _U, _V, _X_FACTORS, _Y_FACTORS, _OTHER, _ANOTHER = range(OWN, OWN + 7)


@dataclass(frozen=True, kw_only=True)
class _Outliers(Linear):
    drawn_asked: ClassVar[bool] = True

    share: float = 0.5

    def problems(self) -> list[str]:
        wrong = [] if 0 <= self.share < 1 else [f"share is {self.share}; write 0 or a share below 1"]
        return [*super().problems(), *wrong]

    def outliers(self, drawn: Drawn) -> Tensor:
        """(B, n) bool"""
        return drawn.rows.uniform(_WHICH, self.points) < self.share

    def asks(self, drawn: Drawn) -> Tensor:
        return super().asks(drawn) & ~self.outliers(drawn).repeat_interleave(2, dim=1)


@FUNCTIONS.register("orthogonal_outlier")
@dataclass(frozen=True, kw_only=True)
class OrthogonalOutlier(_Outliers):
    """Linear, but each example is likely to be an outlier, whose x and y are both vectors a u + b v,
    orthogonal to w.

    d: dimensions
    points: examples of a prompt
    noise: standard deviation of what is added to y
    share: how likely an outlier is
    as_released: as the paper's released code makes them: orthogonal to a w of their own (another for x than
        for y), one outlier for all of a prompt, and its factors divided by a² + b² in the place of its root,
        b by that of the a that was divided already
    """

    points: int = 101
    as_released: bool = False

    def problems(self) -> list[str]:
        line = [f"d is {self.d}, where nothing is orthogonal to w; write at least 2"] if self.d < 2 else []
        return [*super().problems(), *line]

    @property
    def least_dims(self) -> int:
        return 2

    def make(self, drawn: Drawn) -> Prompts:
        clean = super(Linear, self).make(drawn)
        x, after = clean.points.unflatten(1, (-1, 2)).unbind(dim=2)
        odd = self.outliers(drawn)[..., None]
        x_odd, y_odd = self._released(drawn) if self.as_released else self._orthogonal(drawn)
        y = clean.values[:, ::2, 0]
        prompts = tokens_in_turn(torch.where(odd, x_odd, x), torch.where(odd, y_odd, after), y)
        return asked_where(prompts, self.asks(drawn))

    def _orthogonal(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """x and y (B, n, d) of outliers, were all such."""
        u, v = self._across(drawn, self.weights(drawn))
        made = []
        for stream in (_X_FACTORS, _Y_FACTORS):
            factors = drawn.rows.normal(stream, self.points, 2)
            factors = factors / factors.norm(dim=-1, keepdim=True)
            made.append(factors[..., :1] * u[:, None] + factors[..., 1:] * v[:, None])
        return made[0], made[1]

    def _released(self, drawn: Drawn) -> tuple[Tensor, Tensor]:
        made = []
        for stream, other in ((_X_FACTORS, _OTHER), (_Y_FACTORS, _ANOTHER)):
            u, v = self._across(drawn, drawn.rows.normal(other, self.d))
            a, b = drawn.rows.normal(stream, 2).unbind(dim=1)
            a = a / (a.square() + b.square())
            b = b / (a.square() + b.square())
            made.append((a[:, None] * u + b[:, None] * v)[:, None].expand(-1, self.points, -1))
        return made[0], made[1]

    def _across(self, drawn: Drawn, w: Tensor) -> tuple[Tensor, Tensor]:
        """Two normal vectors (B, d) without what of them lies along w, of the dimensions that are alive."""
        alive = drawn.alive(self.d)
        w = torch.where(alive, w, 0)
        along = w / w.norm(dim=-1, keepdim=True)
        found = []
        for stream in (_U, _V):
            each = torch.where(alive, drawn.rows.normal(stream, self.d), 0)
            found.append(each - (each * along).sum(dim=-1, keepdim=True) * along)
        return found[0], found[1]


@FUNCTIONS.register("many_outlier")
@dataclass(frozen=True, kw_only=True)
class ManyOutlier(_Outliers):
    """Linear, but most examples are the same outlier: x of ones (of the dimensions that are alive), and y 1.

    d: dimensions
    points: examples of a prompt
    noise: standard deviation of what is added to y
    share: how likely an outlier is
    """

    points: int = 512
    share: float = 0.9

    def make(self, drawn: Drawn) -> Prompts:
        odd, x = self.outliers(drawn), self.inputs(drawn)
        y = torch.where(odd, 1.0, self.outputs(drawn, x))
        ones = drawn.alive(self.d)[:, None].to(x.dtype)
        return asked_where(in_turn(torch.where(odd[..., None], ones, x), y), self.asks(drawn))
