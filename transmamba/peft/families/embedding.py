"""Embeddings, which `lora_embed` adapts: of tokens, and of patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ...config.registry import FAMILIES
from .family import Family, shapes_of
from .inside import Inside
from .mixer import Mixer, Place

PLACES = {"embedding": (Place("weight"),)}


@FAMILIES.register("tokens")
@dataclass(frozen=True)
class Tokens(Family):
    """A table of which rows are looked up."""

    classes: ClassVar[tuple[str, ...]] = ("torch.nn.modules.sparse.Embedding",)
    on: ClassVar[str] = "embedding"

    def describe(self, module: Any) -> Mixer:
        width, shapes = module.embedding_dim, shapes_of(module)
        return Mixer(kind="an embedding of tokens", width=width, places=PLACES, shapes=shapes, table=True)

    def run(self, module: Any, inside: Inside, ids: Tensor, **kwargs: Any) -> Tensor:
        """ids (B, L) -> (B, L, d)."""
        output = module(ids, **kwargs)
        for up, down in inside.looked_up:
            output = output + (F.embedding(ids, up) @ down).to(output.dtype)
        return output


@FAMILIES.register("patches")
@dataclass(frozen=True)
class Patches(Family):
    """A convolution that cuts a picture into patches."""

    classes: ClassVar[tuple[str, ...]] = ("torch.nn.modules.conv.Conv2d",)
    on: ClassVar[str] = "embedding"

    def describe(self, module: Any) -> Mixer:
        width, shapes = module.out_channels, shapes_of(module)
        return Mixer(kind="an embedding of patches", width=width, places=PLACES, shapes=shapes)
