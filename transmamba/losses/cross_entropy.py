"""Cross-entropy with hard or soft targets and label smoothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from ..config.registry import LOSSES
from ..core.batch import Batch
from ..core.output import Term
from ..distillation.signals import Geometry, Loss, Signals, check_weight


@LOSSES.register("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Task loss in nats a sample, or in nats a token that is asked for.

    weight: factor of the loss in the stage's sum
    label_smoothing: share in 0..1 that is spread over all classes; also of mixup's soft targets
    """

    weight: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        smoothed = self.label_smoothing
        wrong = (
            [] if 0 <= smoothed < 1 else [f"label_smoothing is {smoothed}; write a share from 0 to below 1"]
        )
        check_weight(self.weight, also=wrong)

    def build(self, geometry: Geometry | None = None) -> CrossEntropyLoss:
        return CrossEntropyLoss(self)


class CrossEntropyLoss(Loss):
    needs_teacher = False
    reads_logits = True

    def __init__(self, config: CrossEntropy) -> None:
        super().__init__(config.weight)
        self.label_smoothing = config.label_smoothing

    def item(self, batch: Batch) -> str:
        return "answers" if "tokens" in batch.targets else "samples"

    def forward(self, signals: Signals) -> Term:
        logits, targets = signals.student.logits, signals.batch.targets
        assert logits is not None, "an end-to-end pass has logits"
        wanted = targets["classes"] if "classes" in targets else targets["tokens"].flatten()
        made = logits()
        loss = F.cross_entropy(
            made.flatten(0, -2).float(), wanted, label_smoothing=self.label_smoothing, reduction="sum"
        )
        return Term(loss)
