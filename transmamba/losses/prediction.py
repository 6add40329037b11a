"""What values that are predicted in context miss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..config.registry import LOSSES
from ..core.batch import Batch
from ..core.output import Output, Term, wide
from ..core.points import per_token, points_item
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
        check_points(self.name, geometry)  # type: ignore[attr-defined]
        return PredictionErrorLoss(self.weight)


class PredictionErrorLoss(Loss):
    needs_teacher = False
    reads_logits = True
    targets = ("values",)

    def item(self, batch: Batch) -> str:
        return points_item(batch)

    def forward(self, signals: Signals) -> Term:
        return Term(per_token(said_by(signals.student), signals.batch.targets).sum())


def said_by(output: Output) -> Tensor:
    """(B, L, O), in float32."""
    assert output.logits is not None, "an end-to-end pass has predictions"
    return wide(output.logits())


def check_points(loss: str, geometry: Geometry | None) -> None:
    """Raises UserError for a student and a teacher of other things than points."""
    if geometry is not None and "points" not in geometry.streams:
        read = ", ".join(geometry.streams) or "classes"
        raise UserError(
            f"loss {loss} compares values at points, but student and teacher share {read}; drop it"
        )
