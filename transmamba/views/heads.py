"""What is read from a tower's last stream: classes, an embedding, or the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.layout import Layout
from .sublayers import Affine, Norm


@dataclass(frozen=True)
class Classifier:
    """Logits of pooled tokens, averaged over several readouts (DeiT's distilled pair).

    readouts: a token's name in the layout, or `mean` of the patches, with its linear
    norm:     of the pooled token, where the model has it there and not on the stream
    """

    readouts: tuple[tuple[str, Affine], ...]
    norm: Norm | None = None

    @property
    def num_classes(self) -> int:
        return self.readouts[0][1].weight.shape[0]

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, K) of the normed stream (B, L, D)."""
        logits = []
        for token, linear in self.readouts:
            pooled = pool(x, token, layout)
            logits.append(linear(pooled if self.norm is None else self.norm(pooled)))
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)


@dataclass(frozen=True)
class LanguageHead:
    """Logits of the vocabulary, token by token."""

    linear: Affine

    @property
    def num_classes(self) -> int:
        return self.linear.weight.shape[0]

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """(..., V) of the normed stream (..., D)."""
        return self.linear(x)


@dataclass(frozen=True)
class Embedder:
    """One vector of length 1 a row: a pooled token through a projection."""

    token: str
    projection: Affine

    def __call__(self, x: Tensor, layout: Layout) -> Tensor:
        """(B, E) of the normed stream (B, L, D)."""
        return torch.nn.functional.normalize(self.projection(pool(x, self.token, layout)), dim=-1)


def pool(x: Tensor, token: str, layout: Layout) -> Tensor:
    """(B, D): the token of that name, or the `mean` of the patches."""
    if token == "mean":
        return x[:, layout.patches].mean(dim=1)  # type: ignore[attr-defined]
    return x[:, dict(layout.special)[token]]  # type: ignore[attr-defined]


Head = Classifier | LanguageHead | Embedder
