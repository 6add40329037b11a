"""Associative recall of vectors, with several queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...config.registry import FUNCTIONS
from ...core.points import PointShape
from ...errors import refuse_all
from .prompts import OWN, Drawn, Function, Prompts, X, above, below_one


@FUNCTIONS.register("mqar")
@dataclass(frozen=True, kw_only=True)
class MQAR(Function):
    """Keys and their values in turn, then some of the keys again, in another order, at each of which its
    value is asked; all evenly from the sphere of radius sqrt(d). An answer is the nearest of the prompt's
    values.

    d: dimensions
    pairs: keys with a value
    queries: keys that come again
    as_released: a query is drawn from the keys and one more, a new vector, whose value is that of the key
        with the largest inner product, as in the paper's released code, which has 64 pairs and one query
    """

    recalled: ClassVar[bool] = True

    d: int = 20
    pairs: int = 32
    queries: int = 16
    as_released: bool = False

    def __post_init__(self) -> None:
        line = [f"d is {self.d}, where there are two keys in all; write at least 2"] if self.d == 1 else []
        if self.pairs == 1:
            line.append("pairs is 1, whose value is right whatever is said; write at least 2")
        refuse_all(below_one(self, "d", "pairs", "queries") or line + above(self, "queries", "pairs"))

    @property
    def shape(self) -> PointShape:
        return PointShape(width=self.d, outputs=self.d, length=2 * self.pairs + self.queries)

    @property
    def dims(self) -> int:
        return self.d

    @property
    def least_dims(self) -> int:
        return 2

    @property
    def examples(self) -> int:
        return self.queries

    def place_of(self, tokens: Tensor) -> Tensor:
        return (tokens - 2 * self.pairs).clamp(min=0)

    def asks(self, drawn: Drawn) -> Tensor:
        at = torch.arange(self.shape.length, device=drawn.dims.device) >= 2 * self.pairs
        return at.expand(len(drawn.dims), -1)

    def make(self, drawn: Drawn) -> Prompts:
        both = drawn.rows.normal(X, 2 * self.pairs + 1, self.d)
        both = torch.where(drawn.alive(self.d)[:, None], both, 0)
        both = both * (drawn.dims.float().sqrt()[:, None, None] / both.norm(dim=-1, keepdim=True))
        keys, values = both[:, : 2 * self.pairs].unflatten(1, (-1, 2)).unbind(dim=2)
        slots = keys
        if self.as_released:
            slots = torch.cat([keys, both[:, -1:]], dim=1)
        chosen = drawn.rows.order(OWN, slots.shape[1])[:, : self.queries]
        asked = slots.gather(1, chosen[..., None].expand(-1, -1, self.d))
        nearest = (asked @ keys.mT).argmax(dim=-1) if self.as_released else chosen
        answers = values.gather(1, nearest[..., None].expand(-1, -1, self.d))
        nothing = both.new_zeros(len(both), 2 * self.pairs, self.d)
        at = self.asks(drawn)[..., None].expand(-1, -1, self.d)
        return Prompts(
            torch.cat([both[:, : 2 * self.pairs], asked], dim=1),
            torch.cat([nothing, answers], dim=1),
            at,
            values,
        )
