"""What is read from a tower's last stream: classes, an embedding, or the next token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.layout import Layout
from .sublayers import Affine, Norm


@dataclass(frozen=True)
class EndOfText:
    """A row's first token with the number `token`; None for its largest number, as OpenAI's CLIP has it."""

    token: int | None = None

    def __call__(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, D) of the stream x (B, L, D) of text (B, L)."""
        at = text.argmax(dim=1) if self.token is None else (text == self.token).int().argmax(dim=1)
        return x[torch.arange(len(x), device=x.device), at]


@dataclass(frozen=True)
class AttentionPool:
    """A learnt query that reads all tokens, then a residual MLP: a + down(act(up(norm(a)))) (multihead
    attention pooling, arXiv 2106.04560).

    latent:  (1, D)
    special: whether it reads the special tokens too, not the patches alone
    """

    latent: Tensor
    q: Affine
    k: Affine
    v: Affine
    o: Affine
    heads: int
    norm: Norm | None
    up: Affine
    down: Affine
    act: Callable[[Tensor], Tensor]
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    special: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """(B, D) of the tokens x (B, L, D)."""
        q, k, v = (
            projection(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, tokens in ((self.q, self.latent.expand(len(x), 1, -1)), (self.k, x), (self.v, x))
        )
        q = self.q_norm(q) if self.q_norm else q
        k = self.k_norm(k) if self.k_norm else k
        read = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        pooled = self.o(read.transpose(1, 2).flatten(2))[:, 0]
        normed = pooled if self.norm is None else self.norm(pooled)
        return pooled + self.down(self.act(self.up(normed)))


# a token's name in the layout, `mean` of the patches, `first` or `last` of the row, or one of the two
Pool = str | EndOfText | AttentionPool


def pool(x: Tensor, how: Pool, layout: Layout, inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, D) of the stream (B, L, D)."""
    if isinstance(how, AttentionPool):
        return how(x if how.special else x[:, layout.patches])  # type: ignore[attr-defined]
    if isinstance(how, EndOfText):
        return how(x, inputs["text"])
    if how in ("first", "last"):
        return x[:, 0 if how == "first" else -1]
    if how == "mean":
        return x[:, layout.patches].mean(dim=1)  # type: ignore[attr-defined]
    return x[:, dict(layout.special)[how]]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Classifier:
    """Logits of pooled tokens, averaged over several readouts (DeiT's distilled pair).

    readouts: what is pooled, with its linear
    norm:     of the pooled token, where the model has it there and not on the stream
    """

    readouts: tuple[tuple[Pool, Affine], ...]
    norm: Norm | None = None

    @property
    def num_classes(self) -> int:
        return self.readouts[0][1].weight.shape[0]

    def __call__(self, x: Tensor, layout: Layout, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, K) of the normed stream (B, L, D)."""
        logits = []
        for how, linear in self.readouts:
            pooled = pool(x, how, layout, inputs)
            logits.append(linear(pooled if self.norm is None else self.norm(pooled)))
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(dim=0)


@dataclass(frozen=True)
class LanguageHead:
    """Logits of the vocabulary, token by token.

    tied: whether its matrix is the embedding's
    """

    linear: Affine
    tied: bool = False

    @property
    def vocabulary(self) -> int:
        return self.linear.weight.shape[0]

    def __call__(self, x: Tensor, layout: Layout, inputs: Mapping[str, Tensor]) -> Tensor:
        """(..., V) of the normed stream (..., D)."""
        return self.linear(x)


@dataclass(frozen=True)
class Readout:
    """Values at each point of a sequence."""

    linear: Affine

    def __call__(self, x: Tensor, layout: Layout, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, L, O) of the normed stream (B, L, D)."""
        return self.linear(x)


@dataclass(frozen=True)
class Embedder:
    """One vector of length 1 a row: what is pooled, through a projection (None for none).

    norm: of what is pooled, where the model has it there and not on the stream
    """

    pool: Pool
    projection: Affine | None
    norm: Norm | None = None

    def __call__(self, x: Tensor, layout: Layout, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, E) of the normed stream (B, L, D)."""
        pooled = pool(x, self.pool, layout, inputs)
        pooled = pooled if self.norm is None else self.norm(pooled)
        return F.normalize(pooled if self.projection is None else self.projection(pooled), dim=-1)


Head = Classifier | LanguageHead | Embedder | Readout
