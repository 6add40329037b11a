"""Teacher-forced mixer alignment: every student mixer on the teacher's own input of its layer, all in
parallel.

Needs no labels. The measured figure is one ablation of a language model, MOHAWK's (arXiv 2408.10189): at a
fixed 5B tokens this stage before end-to-end distillation was worth +7.8 points (54.5 -> 62.3 on average).

Triangular targets [proposal]: A V = tril(A) V + triu(A, 1) V splits attention exactly into what a forward and
what a backward scan can reach, so each direction gets a target of its own instead of both chasing their sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config.registry import LOSSES
from ..core.output import Capture, Term
from ..distillation.signals import Geometry, Loss, Signals, check_weight, stack_parts
from ..errors import UserError


@LOSSES.register("mixer")
@dataclass(frozen=True, kw_only=True)
class Mixer:
    """mean over mixers of |z - t|² / |t|² an image: z what the mixer adds to the residual stream, in the
    teacher's space, t what the teacher's sublayer adds; 1 for a mixer that does nothing.

    weight: factor of the loss in the stage's sum
    triangular: weight of the same error of the directions' difference, z_fwd - z_bwd against t_back - t_ahead
        in the student's token order, for mixers that stand in for attention; 0 leaves the split to them
    """

    teacher_forced: ClassVar[bool] = True

    weight: float = 1.0
    triangular: float = 0.0

    def __post_init__(self) -> None:
        check_weight(self.weight)
        check_weight(self.triangular, name="triangular")

    def build(self, geometry: Geometry) -> MixerLoss:
        if self.triangular and geometry.ranks is None:
            raise UserError(
                "loss mixer: triangular targets need the same patch grid in teacher and student; set it to 0"
            )
        return MixerLoss(geometry, self.weight, self.triangular)


class MixerLoss(Loss):
    teacher_forced = True

    ranks: Tensor | None

    def __init__(self, geometry: Geometry, weight: float, triangular: float) -> None:
        super().__init__(weight)
        self.sources, self.triangular = geometry.sources, triangular
        attention = (k for k, (_, sublayer) in self.sources.items() if sublayer == "attention")
        self.split = frozenset(attention if triangular else ())
        # a buffer, since a list would be copied to the GPU at every step
        ranks = torch.tensor(geometry.ranks) if self.split else None
        self.register_buffer("ranks", ranks, persistent=False)

    def student_capture(self) -> Capture:
        return Capture(mixers=frozenset(self.sources), branches=self.split)

    def teacher_capture(self) -> Capture:
        return Capture(mixers=frozenset(t for t, _ in self.sources.values()), ranks=self.ranks)

    def projections(self) -> set[int]:
        return set(self.sources)

    def part_names(self) -> list[str]:
        return [str(k) for k in self.sources]

    def forward(self, signals: Signals) -> Term:
        errors, similarity = [], []
        for k, (t, sublayer) in self.sources.items():
            guide, student = signals.guide.mixers[t], signals.student.mixers[k]
            wanted = signals.bridge.teacher_tokens(guide[f"{sublayer}_output"]).float()
            made = self._made(signals, k, student["output"])
            error = _relative_error(made, wanted)
            if k in self.split:
                back = signals.bridge.teacher_tokens(guide["attention_back"]).float()
                spread = self._made(signals, k, student["spread"])
                error = error + self.triangular * _relative_error(spread, 2 * back - wanted)
            errors.append(error)
            similarity.append(torch.cosine_similarity(made.detach().flatten(1), wanted.flatten(1)))
        loss = torch.stack(errors).mean(dim=0).sum()
        return Term(loss, self.count(signals.targets), stack_parts(similarity))

    @staticmethod
    def _made(signals: Signals, k: int, feature: Tensor) -> Tensor:
        return signals.bridge.project(k, signals.bridge.student_tokens(feature)).float()


def _relative_error(made: Tensor, wanted: Tensor) -> Tensor:
    """|made - wanted|² / |wanted|² over tokens and channels of each image, (B, M, T) -> (B,)."""
    return (made - wanted).square().sum(dim=(1, 2)) / wanted.square().sum(dim=(1, 2)).clamp_min(1e-12)
