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
from ..core.output import Capture, Captures, Term
from ..distillation.signals import (
    Loss,
    Signals,
    StreamGeometry,
    StreamSignals,
    check_weight,
    only,
    stack_parts,
)
from ..errors import UserError


@LOSSES.register("cab")
@dataclass(frozen=True, kw_only=True)
class Cab:
    """mean over layers, of |softmax(net(B)) - softmax(K)|² + |softmax(net(C)) - softmax(Q)|², summed over the
    channels of a head, averaged over heads and tokens, a sample.

    weight: factor of the loss in the stage's sum
    hidden: width of the bridge's two-layer nets
    stream: which tower, where there are several; left out: each
    """

    weight: float = 3.0
    hidden: int = 128
    stream: str | None = None

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build_stream(self, geometry: StreamGeometry) -> CabLoss:
        """Raises UserError for a student whose mixers have no B and C."""
        if not {"B", "C"} <= geometry.parts.keys():
            raise UserError("loss cab needs a student whose mixers have B and C; this one names none")
        return CabLoss(geometry, self.weight, self.hidden)


class CabLoss(Loss):
    def __init__(self, geometry: StreamGeometry, weight: float, hidden: int) -> None:
        super().__init__(weight, geometry)
        attention = [s for s, kind in enumerate(geometry.kinds) if kind == "attention"]
        self.read = {k: attention[k * len(attention) // geometry.num_layers] for k in geometry.sources}
        self.nets = nn.ModuleDict(
            {
                f"{k}_{name}": nn.Sequential(
                    nn.Linear(geometry.parts[name], hidden),
                    nn.SiLU(),
                    nn.Linear(hidden, geometry.inner.get(s, {}).get(wanted, geometry.teacher_width)),
                )
                for k, s in self.read.items()
                for name, wanted in _READ[:2]
            }
        )

    def student_captures(self) -> Captures:
        return only(
            self.stream, Capture(mixers=dict.fromkeys(self.read, frozenset(name for name, _ in _READ)))
        )

    def teacher_captures(self) -> Captures:
        named = frozenset(("q", "k"))
        return only(self.stream, Capture(mixers=dict.fromkeys(self.read.values(), named)))

    def part_names(self) -> list[str]:
        return [str(k) for k in self.read]

    def forward(self, signals: Signals) -> Term:
        stream = signals.stream(self.stream)
        losses, similarity = [], []
        for k, s in self.read.items():
            inner, taught = stream.student.mixers[k], stream.teacher.mixers[s]
            distances = []
            for name, wanted in _READ:
                if name in inner:
                    made = self.nets[f"{k}_{name[0]}"](stream.aligner.student_tokens(inner[name]))
                    distances.append(_distance(made, taught[wanted], stream))
            distance = torch.stack(distances).mean(dim=0)
            losses.append(distance)
            similarity.append(stream.amount(distance) - distance)
        return Term(torch.stack(losses).mean(dim=0).sum(), stack_parts(similarity))


# what is compared with what; the backward direction's are there where a mixer has its own
_READ = (("B", "k"), ("C", "q"), ("B_b", "k"), ("C_b", "q"))


def _distance(made: Tensor, wanted: Tensor, stream: StreamSignals) -> Tensor:
    """|softmax(made) - softmax(wanted)|² summed over a head's channels, of keys or queries (B, H, L, P),
    (B,)."""
    heads = wanted.shape[1]
    wanted = stream.aligner.teacher_tokens(wanted.transpose(1, 2).flatten(2))
    made = made.float().unflatten(-1, (heads, -1)).softmax(dim=-1)
    wanted = wanted.float().unflatten(-1, (heads, -1)).softmax(dim=-1)
    return stream.rows((made - wanted).square().sum(dim=-1).mean(dim=2))
