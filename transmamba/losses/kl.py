"""KL divergence from the teacher's softened distribution (Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..config.registry import LOSSES
from ..core.batch import Batch
from ..core.output import Term
from ..distillation.signals import Geometry, Loss, Signals, check_weight
from ..errors import UserError


@LOSSES.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL:
    """T² KL(teacher ‖ student) in nats a sample, or a real token, at temperature T.

    weight: factor of the loss in the stage's sum
    temperature: T, by which both logits are divided
    """

    weight: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        cold = [f"temperature is {self.temperature}; write a number above 0"] if self.temperature <= 0 else []
        check_weight(self.weight, also=cold)

    def build(self, geometry: Geometry | None = None) -> KLLoss:
        """Raises UserError where teacher and student tell different numbers of classes apart; a student that
        does not say how many is taken at its logits."""
        if geometry is not None and not geometry.same_classes:
            raise UserError(
                f"loss kl compares classes, but the teacher has {geometry.teacher_classes or 0} and the "
                f"student {geometry.student_classes or 0}; fine-tune the teacher's head first, or drop kl"
            )
        return KLLoss(self)


class KLLoss(Loss):
    reads_logits = True

    def __init__(self, config: KL) -> None:
        super().__init__(config.weight)
        self.temperature = config.temperature

    def item(self, batch: Batch) -> str:
        return "tokens" if "tokens" in batch.targets else "samples"

    def forward(self, signals: Signals) -> Term:
        student, teacher = signals.student.logits, signals.taught.logits
        assert student is not None and teacher is not None, "an end-to-end pass has logits"
        made, wanted = student(), teacher()
        mask = signals.batch.inputs.get("text_mask") if made.dim() == 3 else None
        if mask is not None:
            made, wanted = made[mask], wanted[mask]
        loss = F.kl_div(self._soft(made), self._soft(wanted), reduction="sum", log_target=True)
        return Term(loss * self.temperature**2)

    def _soft(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits.float() / self.temperature, dim=-1)
