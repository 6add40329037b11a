"""Attention bridge: small networks map the student's B and C to the teacher's keys and queries (CAB, arXiv
2510.19266), our reading of its paper and released code.

B and C are what keys and queries are to attention; the backward direction's are compared in raster order
with the same keys and queries. CAB itself trains with KL at temperature 1 plus 3 times this term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.registry import LOSSES
from ..core.output import Capture, Term
from ..distillation.signals import Geometry, Loss, Signals, check_weight, stack_parts
from ..errors import UserError


@LOSSES.register("cab")
@dataclass(frozen=True, kw_only=True)
class Cab:
    """mean over layers, of |softmax(net(B)) - softmax(K)|² + |softmax(net(C)) - softmax(Q)|², summed over the
    channels of a head, averaged over heads and tokens, an image.

    weight: factor of the loss in the stage's sum
    hidden: width of the bridge's two-layer nets
    """

    weight: float = 3.0
    hidden: int = 128

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build(self, geometry: Geometry) -> CabLoss:
        if not geometry.state:
            raise UserError("loss cab needs a student whose mixers have B and C; this one names none")
        return CabLoss(geometry, self.weight, self.hidden)


class CabLoss(Loss):
    def __init__(self, geometry: Geometry, weight: float, hidden: int) -> None:
        super().__init__(weight)
        self.blocks = {k: k * geometry.num_blocks // geometry.num_layers for k in geometry.sources}
        self.nets = nn.ModuleDict(
            {
                f"{k}_{name}": nn.Sequential(
                    nn.Linear(geometry.state, hidden), nn.SiLU(), nn.Linear(hidden, geometry.teacher_width)
                )
                for k in self.blocks
                for name in ("B", "C")
            }
        )

    def student_capture(self) -> Capture:
        return Capture(mixers=frozenset(self.blocks))

    def teacher_capture(self) -> Capture:
        return Capture(mixers=frozenset(self.blocks.values()))

    def part_names(self) -> list[str]:
        return [str(k) for k in self.blocks]

    def forward(self, signals: Signals) -> Term:
        losses, similarity = [], []
        for k, t in self.blocks.items():
            inner, guide = signals.student.mixers[k], signals.guide.mixers[t]
            distances = []
            for ours, theirs in (("B", "k"), ("C", "q"), ("B_b", "k"), ("C_b", "q")):
                if ours in inner:
                    net = self.nets[f"{k}_{ours[0]}"]
                    made = net(signals.bridge.student_tokens(inner[ours]))
                    distances.append(self._distance(made, guide[theirs], signals))
            distance = torch.stack(distances).mean(dim=0)
            losses.append(distance)
            similarity.append(1 - distance)
        return Term(
            torch.stack(losses).mean(dim=0).sum(), self.count(signals.targets), stack_parts(similarity)
        )

    @staticmethod
    def _distance(made: Tensor, wanted: Tensor, signals: Signals) -> Tensor:
        heads = wanted.shape[1]
        wanted = signals.bridge.teacher_tokens(wanted.transpose(1, 2).flatten(2))
        made = made.float().unflatten(-1, (heads, -1)).softmax(dim=-1)
        wanted = wanted.float().unflatten(-1, (heads, -1)).softmax(dim=-1)
        return (made - wanted).square().sum(dim=-1).mean(dim=(1, 2))
