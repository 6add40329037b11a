"""Cosine between the embeddings of student and teacher, tower by tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..config.registry import LOSSES
from ..core.bank import Bank, bank_of
from ..core.output import Term
from ..distillation.signals import Geometry, Loss, Signals, check_weight, cosine, unit
from ..errors import UserError
from .pairs import embedding


@LOSSES.register("embedding_cosine")
@dataclass(frozen=True, kw_only=True)
class EmbeddingCosine:
    """1 - cosine of the student's and the teacher's embedding of a row, for one tower, or summed over all
    that both models have. An image tower needs images alone, no pairs. Of embeddings of length 1 it is half
    the squared distance.

    weight: factor of the loss in the stage's sum
    tower: `image` or `text`; all that both have where none is named. Two losses weigh two towers apart
    """

    weight: float = 1.0
    tower: Literal["image", "text"] | None = None

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, geometry: Geometry | None = None) -> EmbeddingCosineLoss:
        return EmbeddingCosineLoss(self)


class EmbeddingCosineLoss(Loss):
    embeds = True

    def __init__(self, config: EmbeddingCosine) -> None:
        super().__init__(config.weight)
        self.tower = config.tower

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.tower is None else (self.tower,)

    def forward(self, signals: Signals) -> Term:
        """Raises UserError where no tower, or not the one that was asked for, is embedded by both models, or
        where their embeddings differ in width."""
        bank, _ = bank_of(signals.student, signals.taught, signals.batch)
        return Term(torch.stack([_distance(bank, tower).sum() for tower in self._towers(signals)]).sum())

    def _towers(self, signals: Signals) -> list[str]:
        if self.tower is not None:
            return [self.tower]
        made, wanted = signals.student.embeddings, signals.taught.embeddings
        shared = [tower for tower in made if tower in wanted]
        if not shared:
            raise UserError(
                f"loss embedding_cosine: the student embeds {', '.join(made) or 'nothing'} and the teacher "
                f"{', '.join(wanted) or 'nothing'}; give both one tower in common, or drop the loss"
            )
        return shared


def _distance(bank: Bank, tower: str) -> Tensor:
    """1 - cosine of each row of a tower, (B,)."""
    made, wanted = (embedding("embedding_cosine", bank, tower, who) for who in ("", "teacher/"))
    if made.shape != wanted.shape:
        raise UserError(
            f"loss embedding_cosine: the student's {tower} embedding is {made.shape[-1]} wide, the teacher's "
            f"{wanted.shape[-1]}; give the student the teacher's width, or use affinity"
        )
    return 1 - cosine(made, unit(wanted))
