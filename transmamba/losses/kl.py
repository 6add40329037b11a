"""KL divergence from the teacher's softened class distribution (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..config.registry import LOSSES
from ..core.output import Term
from ..distillation.signals import Geometry, Loss, Signals, check_weight


@LOSSES.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL:
    """T² KL(teacher ‖ student) in nats an image at temperature T.

    weight: factor of the loss in the stage's sum
    temperature: T, by which both logits are divided
    """

    uses_logits: ClassVar[bool] = True

    weight: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; write a number above 0")

    def build(self, geometry: Geometry | None = None) -> KLLoss:
        return KLLoss(self)


class KLLoss(Loss):
    uses_logits = True

    def __init__(self, config: KL) -> None:
        super().__init__(config.weight)
        self.temperature = config.temperature

    def forward(self, signals: Signals) -> Term:
        student, teacher = signals.student.logits, signals.guide.logits
        assert isinstance(student, Tensor) and isinstance(teacher, Tensor), "an end-to-end pass has logits"
        loss = F.kl_div(
            F.log_softmax(student.float() / self.temperature, dim=-1),
            F.log_softmax(teacher.float() / self.temperature, dim=-1),
            reduction="sum",
            log_target=True,
        )
        return Term(loss * self.temperature**2, self.count(signals.targets))
