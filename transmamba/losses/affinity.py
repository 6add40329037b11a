"""Affinity mimicking (TinyCLIP, arXiv 2309.12314, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..config.registry import LOSSES
from ..distillation.signals import Geometry, check_weight
from .pairs import PairLoss, similarities


@LOSSES.register("affinity")
@dataclass(frozen=True, kw_only=True)
class Affinity:
    """Cross-entropy of the student's distribution over all texts of the global batch under the teacher's, for
    each image, and over all images for each text: their mean, in nats a pair, as open_clip has it. Each model
    has its own `scale`, and the widths of their embeddings may differ. Least where the two agree: there it is
    the teacher's entropy, not 0. Captions of one image are answers like any other: the teacher says how near
    they are.

    weight: factor of the loss in the stage's sum
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, geometry: Geometry | None = None) -> AffinityLoss:
        return AffinityLoss("affinity", self.weight)


class AffinityLoss(PairLoss):
    needs_teacher = True

    def value(self, bank: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> Tensor:
        made, wanted = (
            similarities(*self.pairs(bank, who), self.number(numbers, "scale", who))
            for who in ("", "teacher/")
        )
        return (_cross_entropy(made, wanted) + _cross_entropy(made.mT, wanted.mT)) / 2


def _cross_entropy(made: Tensor, wanted: Tensor) -> Tensor:
    """Of two logits (N, N), over the last axis, summed over the first; `wanted` is a constant."""
    return F.cross_entropy(made, wanted.detach().softmax(dim=-1), reduction="sum")
