"""Each image with each text: one pair or two (SigLIP, arXiv 2303.15343, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import LOSSES
from ..distillation.signals import Geometry, check_weight
from .pairs import PairLoss, same_image, similarities


@LOSSES.register("sigmoid")
@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """-log sigmoid(z (scale * x y + bias)) summed over all N x N couples of the global batch, z = 1 for a
    pair and -1 for any other couple, in nats a pair; `scale` and `bias` are the student's own. Other captions
    of an image (targets `group`) are left out. Needs no teacher.

    weight: factor of the loss in the stage's sum
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, geometry: Geometry | None = None) -> SigmoidLoss:
        return SigmoidLoss("sigmoid", self.weight)


class SigmoidLoss(PairLoss):
    numbers = ("scale", "bias")

    def value(self, bank: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> Tensor:
        image, text = self.pairs(bank)
        scale, bias = (self.number(numbers, name) for name in ("scale", "bias"))
        logits = similarities(image, text, scale) + bias
        rows = torch.arange(len(image), device=image.device)
        pair = rows[:, None] == rows
        nats = F.softplus(torch.where(pair, -logits, logits))
        left_out = same_image(bank, rows)
        return nats.sum() if left_out is None else nats.masked_fill(left_out, 0).sum()
