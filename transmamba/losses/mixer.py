"""Teacher-forced mixer alignment: every student mixer on the teacher's own input of its layer, all in
parallel.

Needs no labels. The measured figure is one ablation of a language model, MOHAWK's (arXiv 2408.10189): at a
fixed 5B tokens this stage before end-to-end distillation was worth +7.8 points (54.5 -> 62.3 on average).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..outputs import Capture, Term
from ..registry import LOSSES
from ..signals import Geometry, Loss, Signals, check_weight, stack_parts


@LOSSES.register("mixer")
@dataclass(frozen=True, kw_only=True)
class Mixer:
    """mean over mixers of |z - t|² / |t|² an image: z what the mixer adds to the residual stream, in the
    teacher's space, t what the teacher's sublayer adds; 1 for a mixer that does nothing."""

    teacher_forced: ClassVar[bool] = True

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, geometry: Geometry) -> MixerLoss:
        return MixerLoss(geometry, self.weight)


class MixerLoss(Loss):
    teacher_forced = True

    def __init__(self, geometry: Geometry, weight: float) -> None:
        super().__init__(weight)
        self.sources = geometry.sources

    def student_capture(self) -> Capture:
        return Capture(mixers=frozenset(self.sources))

    def teacher_capture(self) -> Capture:
        return Capture(mixers=frozenset(t for t, _ in self.sources.values()))

    def projections(self) -> set[int]:
        return set(self.sources)

    def part_names(self) -> list[str]:
        return [str(k) for k in self.sources]

    def forward(self, signals: Signals) -> Term:
        errors, similarity = [], []
        for k, (t, sublayer) in self.sources.items():
            wanted = signals.bridge.teacher_tokens(signals.guide.mixers[t][f"{sublayer}_output"]).float()
            made = signals.bridge.student_tokens(signals.student.mixers[k]["output"])
            made = signals.bridge.project(k, made).float()
            errors.append(_relative_error(made, wanted))
            similarity.append(torch.cosine_similarity(made.detach().flatten(1), wanted.flatten(1)))
        loss = torch.stack(errors).mean(dim=0).sum()
        return Term(loss, self.count(signals.targets), stack_parts(similarity))


def _relative_error(made: Tensor, wanted: Tensor) -> Tensor:
    """|made - wanted|² / |wanted|² over tokens and channels of each image, (B, M, T) -> (B,)."""
    return (made - wanted).square().sum(dim=(1, 2)) / wanted.square().sum(dim=(1, 2)).clamp_min(1e-12)
