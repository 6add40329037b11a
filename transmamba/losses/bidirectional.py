"""Adaptive bidirectional distillation: each scan direction's own feature against the teacher's.

TransMamba (arXiv 2502.15130), as third parties report it, compares the backward branch with the teacher's
features reversed along the tokens. Bringing the branch back to raster order and comparing it with the
unreversed teacher is the same number (a test holds that), so one teacher tensor serves both directions
[proposal D4]. Adaptive weights: `feature.adaptive_weights` [proposal D3].
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config.registry import LOSSES
from ..distillation.signals import StreamGeometry, check_weight
from .feature import CosineLoss, Weighting


@LOSSES.register("bidirectional")
@dataclass(frozen=True, kw_only=True)
class Bidirectional:
    """mean over directions m and layers i of w_im (1 - c_im); 0..2 a sample.

    weight: factor of the loss in the stage's sum
    weighting: as in `feature`
    momentum: of the running mean cosine from which the weights of the next step come
    standardize: as in `feature`
    stream: as in `feature`
    """

    weight: float = 1.0
    weighting: Weighting = "adaptive"
    momentum: float = 0.9
    standardize: bool = False
    stream: str | None = None

    def __post_init__(self) -> None:
        check_weight(self.weight, self.momentum)

    def build_stream(self, geometry: StreamGeometry) -> CosineLoss:
        return CosineLoss(geometry, self, directions=2)
