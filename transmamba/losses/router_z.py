"""What keeps routers' logits small: ST-MoE's z-loss (arXiv 2202.08906, equation 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config.registry import LOSSES
from ..core.output import Term
from ..distillation.signals import Signals, check_weight
from .routed import RoutedLoss, Routers, some


@LOSSES.register("router_z")
@dataclass(frozen=True, kw_only=True)
class RouterZ:
    """mean over routers of (log sum_e exp logit_e)², a token.

    weight: factor of the loss in the stage's sum
    """

    weight: float = 0.001

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def build_routed(self, routers: Routers) -> RouterZLoss:
        """Raises UserError for a student without experts."""
        return RouterZLoss(some("router_z", routers), self.weight)


class RouterZLoss(RoutedLoss):
    def forward(self, signals: Signals) -> Term:
        said = zip(self.said(signals, "router"), self.real(signals), strict=True)
        return Term(torch.stack([(x.logsumexp(dim=-1).square() * real).sum() for x, real in said]).mean())
