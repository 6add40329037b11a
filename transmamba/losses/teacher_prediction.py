"""How far values that are predicted in context are from the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import LOSSES
from ..core.batch import Batch
from ..core.output import Term
from ..core.points import mean_of_asked, points_item
from ..distillation.signals import Geometry, Loss, Signals, check_weight
from .prediction import check_points, said_by


@LOSSES.register("teacher_prediction")
@dataclass(frozen=True, kw_only=True)
class TeacherPrediction:
    """Squared distance to what the teacher says, a token of which something is asked; where values are signs
    T² KL(teacher ‖ student) of the two signs, in nats.

    weight: factor of the loss in the stage's sum
    temperature: T, by which both are divided where values are signs
    """

    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        cold = [f"temperature is {self.temperature}; write a number above 0"] if self.temperature <= 0 else []
        check_weight(self.weight, also=cold)

    def build(self, geometry: Geometry | None = None) -> TeacherPredictionLoss:
        check_points(self.name, geometry)  # type: ignore[attr-defined]
        return TeacherPredictionLoss(self.weight, self.temperature)


class TeacherPredictionLoss(Loss):
    reads_logits = True
    targets = ("values",)

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def item(self, batch: Batch) -> str:
        return points_item(batch)

    def forward(self, signals: Signals) -> Term:
        made, taught, targets = said_by(signals.student), said_by(signals.taught), signals.batch.targets
        errors = (made - taught).square()
        if "signs" in targets:
            errors = torch.where(targets["signs"][:, None, None], self._divergence(made, taught), errors)
        return Term(mean_of_asked(errors, targets["asked"]).sum())

    def _divergence(self, made: Tensor, taught: Tensor) -> Tensor:
        """T² KL of the probabilities that the value is 1."""
        made, taught = made / self.temperature, taught / self.temperature
        up = taught.sigmoid() * (F.logsigmoid(taught) - F.logsigmoid(made))
        down = (-taught).sigmoid() * (F.logsigmoid(-taught) - F.logsigmoid(-made))
        return (up + down) * self.temperature**2
