"""Cosine distance between residual streams, layer by layer, on the merged output of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..config.registry import LOSSES
from ..core.output import Capture, Captures, Term
from ..distillation.signals import Loss, Signals, StreamGeometry, check_weight, cosine, only

if TYPE_CHECKING:
    from .bidirectional import Bidirectional

Weighting = Literal["adaptive", "uniform", "linear_depth"]


@LOSSES.register("feature")
@dataclass(frozen=True, kw_only=True)
class Feature:
    """mean over layers of w_i (1 - c_i), c_i the mean cosine of matched tokens; 0..2 a sample.

    weight: factor of the loss in the stage's sum
    weighting: `uniform`; `linear_depth` (weights grow with depth, as in the authors' released code);
        `adaptive` (less aligned layers weigh more, see `adaptive_weights`)
    momentum: of the running mean cosine from which `adaptive` weights come
    standardize: compare features in units of the teacher's channel statistics, fixed before training
        [proposal]: the plain cosine is ruled by their mean and by a few outlier channels
    stream: which tower, where there are several; left out: each
    image_tokens: whether a decoder's places of pictures are compared too, or its words alone, which are then
        standardised by themselves
    """

    weight: float = 1.0
    weighting: Weighting = "uniform"
    momentum: float = 0.9
    standardize: bool = False
    stream: str | None = None
    image_tokens: bool = True

    def __post_init__(self) -> None:
        check_weight(self.weight, self.momentum)

    def build_stream(self, geometry: StreamGeometry) -> CosineLoss:
        return CosineLoss(geometry, self, directions=1, words=not self.image_tokens)


class CosineLoss(Loss):
    """Both the fused (`directions=1`) and the bidirectional (`directions=2`) feature loss."""

    running: Tensor

    def __init__(
        self, geometry: StreamGeometry, config: Feature | Bidirectional, directions: int, words: bool = False
    ) -> None:
        super().__init__(config.weight, geometry, words)
        self.pairs, self.directions = geometry.pairs, directions
        self.weighting, self.momentum = config.weighting, config.momentum
        self.standardises = config.standardize
        # NaN until the first step was observed; then the running mean cosine, (directions, layers)
        self.register_buffer("running", torch.full((directions, len(self.pairs)), torch.nan))

    def student_captures(self) -> Captures:
        layers = frozenset(self.pairs)
        return only(self.stream, Capture(branches=layers) if self.directions == 2 else Capture(hidden=layers))

    def teacher_captures(self) -> Captures:
        return only(self.stream, Capture(hidden=frozenset(self.pairs.values())))

    def projections(self) -> set[int]:
        return set(self.pairs)

    def part_names(self) -> list[str]:
        sides = ("/fwd", "/bwd") if self.directions == 2 else ("",)
        return [f"{k}{side}" for side in sides for k in self.pairs]

    def no_parts(self) -> Tensor:
        return torch.zeros_like(self.running)

    def weights(self) -> Tensor:
        """Loss weight of each (direction, layer), mean 1 a direction before the cap; constants to
        autograd."""
        if self.weighting == "linear_depth":
            depth = torch.arange(1, len(self.pairs) + 1, device=self.running.device, dtype=torch.float32)
            return (depth / depth.mean()).expand_as(self.running)
        if self.weighting == "uniform":
            return torch.ones_like(self.running)
        # before the first step all are alike; asked without a branch, which would wait for the GPU
        return adaptive_weights(self.running.nan_to_num(1.0))

    def observe(self, parts: Tensor) -> None:
        mean = parts.to(self.running.device)
        moved = self.momentum * self.running + (1 - self.momentum) * mean
        self.running.copy_(torch.where(self.running.isnan(), mean, moved))

    def forward(self, signals: Signals) -> Term:
        stream = signals.stream(self.stream, self.image_token)
        layers, sublayers = list(self.pairs), list(self.pairs.values())
        wanted = stream.teacher_units(sublayers, self.standardises)
        features = (
            stream.student_branches(layers) if self.directions == 2 else stream.student_hidden(layers)[None]
        )
        if self.standardises:
            features = stream.aligner.standardise(sublayers, features, stream.words)
        cosines = stream.rows(cosine(features, wanted))  # (directions, layers, B)
        weighted = self.weights()[..., None] * (stream.amount(cosines) - cosines)
        parts = cosines.detach().float().sum(dim=-1)
        return Term(weighted.mean(dim=(0, 1)).sum(), parts)


def adaptive_weights(similarity: Tensor, floor: float = 0.1, cap: float = 5.0) -> Tensor:
    """w_i = mean_j(c_j) / c_i with c clamped to floor..1, scaled to mean 1 and capped; (..., N) -> (..., N).

    The published rule, as third parties report it, is (sum_j c_j) / c_i on raw, attached cosines: that
    explodes near c = 0, changes sign below it, grows with depth and pushes aligned layers apart. Detached,
    clamped and mean-normalised [proposal D3] it keeps the intent: the less aligned a layer, the more it
    weighs.
    """
    clamped = similarity.detach().clamp(floor, 1.0)
    weights = clamped.mean(dim=-1, keepdim=True) / clamped
    return (weights / weights.mean(dim=-1, keepdim=True)).clamp(max=cap)
