"""Losses over values that are predicted in context: against what is right, and against what the teacher
says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.registry import LOSSES
from ..core.batch import Batch
from ..core.output import Output, Term, wide
from ..core.points import mean_of_asked, per_token, points_item
from ..distillation.signals import Geometry, Loss, Signals, check_weight
from ..errors import UserError


@LOSSES.register("prediction")
@dataclass(frozen=True, kw_only=True)
class PredictionError:
    """Squared error of what is asked, a token; where values are signs the logistic loss.

    weight: factor of the loss in the stage's sum
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, geometry: Geometry | None = None) -> PredictionErrorLoss:
        _check(self.name, geometry)  # type: ignore[attr-defined]
        return PredictionErrorLoss(self.weight)


class PredictionErrorLoss(Loss):
    needs_teacher = False
    reads_logits = True

    def item(self, batch: Batch) -> str:
        return points_item(batch)

    def forward(self, signals: Signals) -> Term:
        return Term(per_token(_said(signals.student), signals.batch.targets).sum())


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
        _check(self.name, geometry)  # type: ignore[attr-defined]
        return TeacherPredictionLoss(self.weight, self.temperature)


class TeacherPredictionLoss(Loss):
    reads_logits = True

    def __init__(self, weight: float, temperature: float) -> None:
        super().__init__(weight)
        self.temperature = temperature

    def item(self, batch: Batch) -> str:
        return points_item(batch)

    def forward(self, signals: Signals) -> Term:
        made, taught, targets = _said(signals.student), _said(signals.taught), signals.batch.targets
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


def _said(output: Output) -> Tensor:
    """(B, L, O), in float32."""
    assert output.logits is not None, "an end-to-end pass has predictions"
    return wide(output.logits())


def _check(loss: str, geometry: Geometry | None) -> None:
    """Raises UserError for a student and a teacher of other things than points."""
    if geometry is not None and "points" not in geometry.streams:
        read = ", ".join(geometry.streams) or "classes"
        raise UserError(
            f"loss {loss} compares values at points, but student and teacher share {read}; drop it"
        )
