"""How a tower's stream begins: patches of an image, rows of a token table, both spliced together, or
points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.output import Context
from ..layers.cell_means import CellMeans
from .sublayers import Affine, Norm


@dataclass(frozen=True)
class ImageEmbedding:
    """Convolution over patches, their norm, special tokens, positions, the norm of all.

    weight:   (D, C, patch, patch)
    special:  (S, D) in sequence order before the patches
    position: (S + N, D), zero where a token has none
    patch_norm: of the patches alone, before they have positions
    centre:   whether each token's mean is taken from it, after the norm: what folding leaves of a norm here
    """

    reads: ClassVar[str] = "image"

    weight: Tensor
    bias: Tensor | None
    special: Tensor
    position: Tensor
    norm: Norm | None = None
    centre: bool = False
    patch_norm: Norm | None = None

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context]:
        """The stream (B, L, D) of images (B, C, H, W)."""
        images = inputs["image"].to(self.weight.dtype)
        patches = F.conv2d(images, self.weight, self.bias, stride=self.weight.shape[-2:])
        tokens = patches.flatten(2).transpose(1, 2)
        tokens = tokens if self.patch_norm is None else self.patch_norm(tokens)
        special = self.special.expand(len(images), -1, -1).to(tokens.dtype)
        tokens = torch.cat([special, tokens], dim=1) + self.position
        tokens = tokens if self.norm is None else self.norm(tokens)
        return (tokens - tokens.mean(dim=-1, keepdim=True) if self.centre else tokens), Context()


@dataclass(frozen=True)
class TokenEmbedding:
    """Rows of a table, and learnt positions where there are any.

    weight:    (V, D)
    positions: (longest, D) by the token's place in its own document, None for none
    scale:     of the rows (Gemma's)
    absolute:  whether positions count a row's tokens, padding too, as CLIP's and SigLIP's do
    """

    reads: ClassVar[str] = "text"

    weight: Tensor
    positions: Tensor | None = None
    scale: float = 1.0
    absolute: bool = False

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context]:
        """The stream (B, L, D) of text (B, L), with its mask or segments as the layers' context."""
        context = Context.of(inputs)
        tokens = F.embedding(inputs["text"], self.weight)
        tokens = tokens if self.scale == 1 else tokens * self.scale
        if self.positions is not None:
            assert context.positions is not None, "text has positions"
            places = torch.arange(tokens.shape[1], device=tokens.device)
            tokens = tokens + F.embedding(places if self.absolute else context.positions, self.positions)
        return tokens, context


@dataclass(frozen=True)
class Connector:
    """From a tower's tokens to a decoder's: linears with `act` between them.

    means: what is read of a tower's patches in their place; None for themselves
    """

    linears: tuple[Affine, ...]
    act: Callable[[Tensor], Tensor]
    means: CellMeans | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(P, N, D) of (P, L, D')."""
        x = x if self.means is None else self.means(x)
        for i, linear in enumerate(self.linears):
            x = linear(x if i == 0 else self.act(x))
        return x


@dataclass(frozen=True)
class Spliced:
    """Text whose tokens of the number `token` are replaced, in order, by another tower's tokens (LLaVA, arXiv
    2304.08485).

    source:  that tower, whose last stream `connector` reads
    special: whether its special tokens come too, or the patches alone
    """

    reads: ClassVar[str] = "text"

    tokens: TokenEmbedding
    connector: Connector
    token: int
    source: str = "image"
    special: bool = False

    @property
    def weight(self) -> Tensor:
        return self.tokens.weight

    @property
    def width(self) -> int:
        return self.tokens.width

    @property
    def features(self) -> str:
        """The input that holds that tower's tokens (N, T, D'); absent, the text stands alone."""
        return f"{self.source}_features"

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context]:
        """The stream (B, L, D) of text (B, L). Raises ValueError where the text has another number of places
        than there are tokens."""
        stream, context = self.tokens(inputs)
        places = inputs["text"] == self.token
        if self.features not in inputs:
            return stream, context
        put = self.connector(inputs[self.features]).flatten(0, 1)
        found, wanted = int(places.sum()), len(put)
        if found != wanted:
            raise ValueError(f"the text has {found} tokens {self.token}, one for each of {wanted} is needed")
        return stream.masked_scatter(places[..., None], put.to(stream.dtype)), context


@dataclass(frozen=True)
class PointEmbedding:
    """A linear of each point of a sequence, and learnt positions where there are any.

    weight:    (D, d)
    positions: (longest, D) by the point's place
    """

    reads: ClassVar[str] = "points"

    weight: Tensor
    bias: Tensor
    positions: Tensor | None = None

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context]:
        """The stream (B, L, D) of points (B, L, d)."""
        stream = F.linear(inputs["points"].to(self.weight.dtype), self.weight, self.bias)
        return stream if self.positions is None else stream + self.positions[: stream.shape[1]], Context()


Embedding = ImageEmbedding | TokenEmbedding | Spliced | PointEmbedding
