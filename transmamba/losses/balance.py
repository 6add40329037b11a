"""What keeps routers from sending all tokens to a few experts; and how they route, for the log.

Switch Transformers (arXiv 2101.03961, equation 4), of each router by itself and averaged over them,
as MoE-Mamba's code does: one loss of all layers' sums, as in transformers, lets layers' faults cancel.
Shapes: B rows, L tokens, E experts, R routers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.registry import LOSSES
from ..core.output import Term
from ..distillation.signals import Signals, check_weight
from .routed import RoutedLoss, Routers, some


@LOSSES.register("balance")
@dataclass(frozen=True, kw_only=True)
class Balance:
    """mean over routers of E sum_e f_e P_e: f_e the share of tokens that chose expert e (before any is
    dropped), P_e its mean probability, a token; 1 where all experts have as many, E where one has all.

    f is a running mean over earlier steps, of all ranks and micro-batches: a product of two means of one
    micro-batch would make accumulation change the result. Before the first step it is 1 / E.

    weight: factor of the loss in the stage's sum; 0 logs how tokens are routed, and balances nothing
    momentum: of the running mean; 0 takes the last step's
    """

    weight: float = 0.01
    momentum: float = 0.5

    def __post_init__(self) -> None:
        check_weight(self.weight, self.momentum)

    def build_routed(self, routers: Routers) -> BalanceLoss:
        """Raises UserError for a student without experts."""
        return BalanceLoss(some("balance", routers), self)


class BalanceLoss(RoutedLoss):
    """Its parts are what is logged: by router each expert's load, the share of a token's experts that were
    full, and the mean entropy of a token's probabilities, in nats."""

    logged = "routing"
    names = ("router", "chosen", "within")
    running: Tensor
    evenly: Tensor

    def __init__(self, routers: Routers, config: Balance) -> None:
        super().__init__(routers, config.weight)
        self.momentum = config.momentum
        # NaN until the first step was observed; then the running share of each expert, (R, E)
        self.register_buffer("running", torch.full((len(self.counts), max(self.counts)), torch.nan))
        # where it lies once: brought there in each step it would wait for the GPU
        self.register_buffer("evenly", 1 / torch.tensor(self.counts)[:, None], persistent=False)

    def part_names(self) -> list[str]:
        return [
            f"{layer}{name}/{what}"
            for _, layer, name in self.places
            for what in (*(f"load_{e}" for e in range(max(self.counts))), "dropped", "entropy")
        ]

    def no_parts(self) -> Tensor:
        return torch.zeros(len(self.counts), max(self.counts) + 2)

    def shares(self) -> Tensor:
        """f, (R, E); asked for without a branch, which would wait for the GPU."""
        return torch.where(self.running.isnan(), self.evenly.to(self.running.dtype), self.running)

    def observe(self, parts: Tensor) -> None:
        mean = parts[:, : self.running.shape[1]].to(self.running)
        moved = self.momentum * self.running + (1 - self.momentum) * mean
        self.running.copy_(torch.where(self.running.isnan(), mean, moved))

    def forward(self, signals: Signals) -> Term:
        sums, parts, shares = [], [], self.shares()
        said = (self.said(signals, kind) for kind in self.names)
        for k, (logits, chosen, within, real) in enumerate(zip(*said, self.real(signals), strict=True)):
            probabilities, count = logits.softmax(dim=-1), self.counts[k]
            sums.append(count * (probabilities @ shares[k, :count].to(logits.dtype) * real).sum())
            parts.append(_record(probabilities.detach(), chosen, within, real, shares.shape[1]))
        return Term(torch.stack(sums).mean(), torch.stack(parts))


@torch.no_grad()
def _record(probabilities: Tensor, chosen: Tensor, within: Tensor, real: Tensor, most: int) -> Tensor:
    """(most + 2,) sums over real tokens: of each expert's share of a token, of a token's share that is
    dropped, of the entropy of its probabilities; probabilities (B, L, E), chosen and within (B, L, k)."""
    each = real.float()[..., None] / chosen.shape[-1]
    load = torch.zeros(most, device=chosen.device)
    load.index_add_(0, chosen.flatten(), each.expand_as(chosen).flatten())
    dropped = (~within * each).sum()
    entropy = (torch.special.entr(probabilities).sum(dim=-1) * real).sum().float()
    return torch.cat([load, torch.stack([dropped, entropy])])
