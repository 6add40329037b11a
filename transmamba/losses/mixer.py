"""Teacher-forced mixer alignment: every student mixer on the teacher's own input of its layer, all in
parallel.

Needs no labels. The measured figure is one ablation of a language model, MOHAWK's (arXiv 2408.10189): at a
fixed 5B tokens this stage before end-to-end distillation was worth +7.8 points (54.5 -> 62.3 on average).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.registry import LOSSES
from ..core.output import Capture, Captures, Term
from ..distillation.signals import Loss, Signals, StreamGeometry, check_weight, only, stack_parts
from ..errors import UserError


@LOSSES.register("mixer")
@dataclass(frozen=True, kw_only=True)
class Mixer:
    """mean over mixers of |z - t|² / |t|² a sample: z what the mixer adds to the residual stream, in the
    teacher's space, t what the teacher's sublayer adds; 1 for a mixer that does nothing. Of text, a row
    weighs as many tokens as it has.

    weight: factor of the loss in the stage's sum
    layer:  z and t are what the whole layer adds, the mixer and the MLP behind it. `auto` trains the mixers
        alone; name mlp and norms in `trainable` where they shall follow
    stream: which tower, where there are several; left out: each
    image_tokens: whether a decoder's places of pictures are compared too, or its words alone
    """

    weight: float = 1.0
    layer: bool = False
    stream: str | None = None
    image_tokens: bool = True

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build_stream(self, geometry: StreamGeometry) -> MixerLoss:
        """Raises UserError for a student without mixers of its own, or whose layers do not say what they
        add."""
        if not geometry.sources:
            raise UserError(
                f"loss mixer: all layers of this student keep the teacher's attention in {geometry.name}, so "
                "nothing is there to align; name another stream of it, or leave the loss out, and a stage of "
                "it alone"
            )
        if self.layer and "layer" not in geometry.parts:
            raise UserError(
                "loss mixer: layer is true, but this student's mixers do not name layer, as those of "
                "hybrid_lm do; leave it out"
            )
        return MixerLoss(geometry, self.weight, self.layer, words=not self.image_tokens)


class MixerLoss(Loss):
    teacher_forced = True

    def __init__(
        self, geometry: StreamGeometry, weight: float, layer: bool = False, words: bool = False
    ) -> None:
        super().__init__(weight, geometry, words)
        self.sources, self.made = geometry.sources, "layer" if layer else "output"
        self.added = {s: _layer_of(s, geometry.kinds) if layer else (s,) for s in self.sources.values()}

    def student_captures(self) -> Captures:
        return only(self.stream, Capture(mixers=dict.fromkeys(self.sources, frozenset((self.made,)))))

    def teacher_captures(self) -> Captures:
        every = {part: {"output"} for parts in self.added.values() for part in parts}
        for s in self.added:
            every[s].add("input")
        return only(self.stream, Capture(mixers={s: frozenset(named) for s, named in every.items()}))

    def projections(self) -> set[int]:
        return set(self.sources)

    def part_names(self) -> list[str]:
        return [str(k) for k in self.sources]

    def forward(self, signals: Signals) -> Term:
        stream = signals.stream(self.stream, self.image_token)
        errors, similarity = [], []
        for k, s in self.sources.items():
            first, *rest = (stream.teacher.mixers[part]["output"].float() for part in self.added[s])
            wanted = stream.real(stream.aligner.teacher_tokens(sum(rest, first)))
            made = stream.aligner.student_tokens(stream.student.mixers[k][self.made])
            made = stream.real(stream.aligner.project(k, made).float())
            error = _relative_error(made, wanted)
            amount = stream.amount(error)
            alike = torch.cosine_similarity(made.detach().flatten(1), wanted.flatten(1))
            errors.append(error * amount)
            similarity.append(alike * amount)
        return Term(torch.stack(errors).mean(dim=0).sum(), stack_parts(similarity))


def _layer_of(sublayer: int, kinds: tuple[str, ...]) -> tuple[int, ...]:
    """A sublayer of attention and the MLPs behind it."""
    end = sublayer + 1
    while end < len(kinds) and kinds[end] == "mlp":
        end += 1
    return tuple(range(sublayer, end))


def _relative_error(made: Tensor, wanted: Tensor) -> Tensor:
    """|made - wanted|² / |wanted|² over tokens and channels of each row, (B, M, T) -> (B,)."""
    return (made - wanted).square().sum(dim=(1, 2)) / wanted.square().sum(dim=(1, 2)).clamp_min(1e-12)
