"""Embeddings of tokens, which `lora_embed` adapts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ...config.registry import FAMILIES
from .family import Family, shapes_of
from .inside import Inside
from .mixer import Mixer, Place


@FAMILIES.register("embedding")
@dataclass(frozen=True)
class TokenEmbedding(Family):
    """A table of which rows are looked up."""

    classes: ClassVar[tuple[str, ...]] = ("torch.nn.modules.sparse.Embedding",)
    on: ClassVar[str] = "embedding"

    def describe(self, module: Any) -> Mixer:
        return Mixer(
            kind="an embedding of tokens",
            width=module.embedding_dim,
            places={"embedding": (Place("weight"),)},
            shapes=shapes_of(module),
            table=True,
        )

    def run(self, module: Any, inside: Inside, ids: Tensor, **kwargs: Any) -> Tensor:
        """ids (B, L) -> (B, L, d)."""
        output = module(ids, **kwargs)
        for up, down in inside.looked_up:
            output = output + (F.embedding(ids, up) @ down).to(output.dtype)
        return output
