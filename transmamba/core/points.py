"""Sequences of points in R^d, in which a function is learnt in context: how large they are, and what is
asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .batch import Batch


@dataclass(frozen=True, kw_only=True)
class PointShape:
    """Of the sequences that a model reads.

    width:   of a point
    outputs: numbers that are predicted at each point
    length:  points of a sequence
    positions: that a model has learnt; 0 for none, which reads any length
    """

    width: int
    outputs: int
    length: int
    positions: int = 0


def per_token(made: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """(B, L) what predictions (B, L, O) miss, at tokens of which nothing is asked 0: the mean over what is
    asked of the squared error; in rows whose values are signs (`signs` (B,) bool) of the logistic loss, in
    nats.

    targets: values (B, L, O) and asked (B, L, O) bool
    Raises UserError for predictions of another shape, which would be spread over the values.
    """
    values, asked = targets["values"].to(made.dtype), targets["asked"]
    if made.shape != values.shape:
        raise UserError(
            f"the model says values {tuple(made.shape)}, but {tuple(values.shape)} are asked; take a model "
            "of this task's points"
        )
    errors = (made - values).square()
    if "signs" in targets:
        logistic = torch.nn.functional.softplus(-made * values)
        errors = torch.where(targets["signs"][:, None, None], logistic, errors)
    return mean_of_asked(errors, asked)


def mean_of_asked(errors: Tensor, asked: Tensor) -> Tensor:
    """(B, L) the mean over what is asked of a token, of errors (B, L, O); 0 where nothing is."""
    return torch.where(asked, errors, 0).sum(dim=-1) / asked.sum(dim=-1).clamp_min(1)


def points_item(batch: Batch) -> str:
    """What losses over predictions are divided by: the tokens of which something is asked."""
    return "answers" if "answers" in batch.counts else "samples"
