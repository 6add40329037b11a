"""How a tower's stream begins: patches of an image, or rows of a token table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.output import Context
from .sublayers import Norm


@dataclass(frozen=True)
class ImageEmbedding:
    """Convolution over patches, special tokens, positions.

    weight:   (D, C, patch, patch)
    special:  (S, D) in sequence order before the patches
    position: (S + N, D), zero where a token has none
    centre:   whether each token's mean is taken from it, after the norm: what folding leaves of a norm here
    """

    reads: ClassVar[str] = "image"

    weight: Tensor
    bias: Tensor | None
    special: Tensor
    position: Tensor
    norm: Norm | None = None
    centre: bool = False

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context]:
        """The stream (B, L, D) of images (B, C, H, W)."""
        images = inputs["image"].to(self.weight.dtype)
        patches = F.conv2d(images, self.weight, self.bias, stride=self.weight.shape[-2:])
        tokens = patches.flatten(2).transpose(1, 2)
        special = self.special.expand(len(images), -1, -1).to(tokens.dtype)
        tokens = torch.cat([special, tokens], dim=1) + self.position
        tokens = tokens if self.norm is None else self.norm(tokens)
        return (tokens - tokens.mean(dim=-1, keepdim=True) if self.centre else tokens), Context()


@dataclass(frozen=True)
class TokenEmbedding:
    """Rows of a table, and learnt positions where there are any.

    weight:    (V, D)
    positions: (longest, D) by the token's place in its own document, None for none
    """

    reads: ClassVar[str] = "text"

    weight: Tensor
    positions: Tensor | None = None

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    def __call__(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Context]:
        """The stream (B, L, D) of text (B, L), with its mask or segments as the layers' context."""
        context = Context.of(inputs)
        tokens = F.embedding(inputs["text"], self.weight)
        if self.positions is not None:
            assert context.positions is not None, "text has positions"
            tokens = tokens + F.embedding(context.positions, self.positions)
        return tokens, context


Embedding = ImageEmbedding | TokenEmbedding
