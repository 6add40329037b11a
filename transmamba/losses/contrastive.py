"""Contrast of each image with all texts and of each text with all images (CLIP, arXiv 2103.00020, fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..config.registry import LOSSES
from ..distillation.signals import Geometry, check_weight
from .pairs import PairLoss, same_image, similarities

_BLOCK = 1024  # rows of similarities that are held at a time under `local_loss`


@LOSSES.register("contrastive")
@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Symmetric InfoNCE in nats a pair over the whole global batch: the mean of the cross-entropies of an
    image among all texts and of a text among all images, at the student's own `scale`. Other captions of an
    image (targets `group`) are left out. Needs no teacher.

    weight: factor of the loss in the stage's sum
    local_loss: hold a block of rows of the similarities at a time instead of all N x N, and compute them
        twice; the same loss and gradients. What open_clip's `--local-loss --gather-with-grad` is for
    """

    weight: float = 1.0
    local_loss: bool = False

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, geometry: Geometry | None = None) -> ContrastiveLoss:
        return ContrastiveLoss(self)


class ContrastiveLoss(PairLoss):
    def __init__(self, config: Contrastive) -> None:
        super().__init__("contrastive", config.weight)
        self.local_loss = config.local_loss

    def value(self, bank: Mapping[str, Tensor], numbers: Mapping[str, Tensor]) -> Tensor:
        image, text = self.pairs(bank)
        scale = self.number(numbers, "scale")
        every = torch.arange(len(image), device=image.device)
        if not self.local_loss:
            return _both_ways(image, text, scale, bank, every)
        blocks = [
            checkpoint(_both_ways, image, text, scale, bank, rows, use_reentrant=False)
            for rows in every.split(_BLOCK)
        ]
        return torch.stack(blocks).sum()


def _both_ways(
    image: Tensor, text: Tensor, scale: Tensor, bank: Mapping[str, Tensor], rows: Tensor
) -> Tensor:
    """The loss of the pairs `rows` (n,) among all N, summed over them."""
    left_out = same_image(bank, rows)
    ways = []
    for asked, answers in ((image, text), (text, image)):
        logits = similarities(asked[rows], answers, scale)
        if left_out is not None:
            logits = logits.masked_fill(left_out, -torch.inf)
        ways.append(F.cross_entropy(logits, rows, reduction="sum"))
    return (ways[0] + ways[1]) / 2
