"""Multinomial logistic regression on fixed features, as a linear probe is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.subset import hold_out

STRENGTHS = tuple(10.0**k for k in range(-2, 6))
HELD_OUT = 0.2
# how far the gradient falls, as a share of what it is at zero, and after how many steps it may do no more
_PRECISION, _STEPS = 1e-5, 1000


@dataclass(frozen=True)
class Logistic:
    """Of the classes (C,) that had an item to be fitted on: weight (C, E), bias (C,), float64."""

    classes: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor, num_classes: int) -> Tensor:
        """(N, num_classes) float64 of features (N, E). A class that nothing was known of comes last."""
        known = F.linear(features.double(), self.weight, self.bias)
        logits = (known.amin(dim=1, keepdim=True) - 1).expand(-1, num_classes)
        return logits.index_copy(1, self.classes, known)


def fit(features: Tensor, labels: Tensor, strength: float) -> Logistic:
    """What minimises strength * sum_n -log p(label_n) + ||weight||^2 / 2 (`strength` is scikit-learn's C; the
    bias is free), by L-BFGS in float64 from zero.

    features: (N, E); labels: (N,) int64
    """
    classes, target = labels.unique(return_inverse=True)
    x, count = features.double(), len(labels)
    if not torch.isfinite(x).all():
        nothing = x.new_full((len(classes), x.shape[1]), torch.nan)
        return Logistic(classes, nothing, nothing[:, 0])
    weight, bias = x.new_zeros(len(classes), x.shape[1]), x.new_zeros(len(classes))
    parameters = [weight.requires_grad_(), bias.requires_grad_()]

    def loss() -> Tensor:
        penalty = weight.square().sum() / (2 * strength * count)
        return F.cross_entropy(F.linear(x, weight, bias), target) + penalty

    with torch.enable_grad():
        # relative, for the gradient of short features and many classes is small from the start
        steepest = max(gradient.abs().max().item() for gradient in torch.autograd.grad(loss(), parameters))
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=_STEPS,
            tolerance_grad=_PRECISION * steepest,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)
    return Logistic(classes, weight.detach(), bias.detach())


@dataclass(frozen=True)
class Trial:
    """One strength on what was held out: accuracy in %, negative log-likelihood in nats."""

    strength: float
    top1: float
    nll: float


def try_out(features: Tensor, labels: Tensor, strengths: Sequence[float] = STRENGTHS) -> list[Trial]:
    """Each strength, fitted without a fifth of each class and measured on it; none where no class has two
    items. features: (N, E); labels: (N,)"""
    kept, held = _parts(labels.numpy())
    if not len(held):
        return []
    trials = []
    for strength in strengths:
        fitted = fit(features[kept], labels[kept], strength)
        logits = fitted.logits(features[held], int(labels.max()) + 1)
        top1 = (logits.argmax(dim=1) == labels[held]).double().mean()
        trials.append(Trial(strength, 100 * top1.item(), F.cross_entropy(logits, labels[held]).item()))
    return trials


def best_of(trials: Sequence[Trial]) -> float:
    """The strength of the most accurate; of equals, of the likeliest; 1 without trials."""
    return max(trials, key=lambda trial: (trial.top1, -trial.nll)).strength if trials else 1.0


def _parts(labels: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(kept, held out) places; a class with one item keeps it."""
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[place] > 1)
    kept, held = hold_out(labels[several], HELD_OUT, seed=0)
    alone = np.flatnonzero(counts[place] == 1)
    return torch.from_numpy(np.sort(np.r_[alone, several[kept]])), torch.from_numpy(several[held])
