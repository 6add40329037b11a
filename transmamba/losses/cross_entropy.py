"""Cross-entropy with hard or soft targets and label smoothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import LOSSES
from ..core.batch import IGNORED, Batch, asked_item, looked_at
from ..core.output import Logits, Term, wide
from ..distillation.signals import Geometry, Loss, Signals, check_weight
from .chunked import CHUNK, chunk_problems, chunked


@LOSSES.register("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Task loss in nats a sample, or in nats a token that is asked for.

    weight: factor of the loss in the stage's sum
    label_smoothing: share in 0..1 that is spread over all classes; also of mixup's soft targets
    chunk: of language models, tokens whose logits exist at a time: fewer take less memory
    """

    weight: float = 1.0
    label_smoothing: float = 0.0
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        smoothed = self.label_smoothing
        wrong = (
            [] if 0 <= smoothed < 1 else [f"label_smoothing is {smoothed}; write a share from 0 to below 1"]
        )
        check_weight(self.weight, also=[*wrong, *chunk_problems(self.chunk)])

    def build(self, geometry: Geometry | None = None) -> CrossEntropyLoss:
        return CrossEntropyLoss(self)


class CrossEntropyLoss(Loss):
    needs_teacher = False
    reads_logits = True
    targets = ("tokens", "classes")

    def __init__(self, config: CrossEntropy) -> None:
        super().__init__(config.weight)
        self.label_smoothing, self.chunk = config.label_smoothing, config.chunk

    def item(self, batch: Batch) -> str:
        return asked_item(batch) if "tokens" in batch.targets else "samples"

    def forward(self, signals: Signals) -> Term:
        logits, batch = signals.student.logits, signals.batch
        assert logits is not None, "an end-to-end pass has logits"
        if "tokens" in batch.targets:
            return Term(self._of_words(logits, batch.targets["tokens"], *looked_at(batch)))
        return Term(self._entropy(logits().flatten(0, -2), batch.targets["classes"]))

    def _of_words(self, logits: Logits, targets: Tensor, tokens: Tensor, real: Tensor | None) -> Tensor:
        """Over these of the B * L tokens, where `real` is not False; targets (B, L)."""
        wanted = targets.flatten()[tokens]
        if real is not None:
            wanted = torch.where(real, wanted, IGNORED)
        return chunked(logits, tokens, self.chunk, lambda made, part: self._entropy(made, wanted[part]))

    def _entropy(self, made: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(
            wide(made),
            wanted,
            ignore_index=IGNORED,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
