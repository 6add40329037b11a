"""Embeddings, which `lora_embed` adapts: of tokens, and of patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ...config.registry import FAMILIES
from .family import Family, shapes_of
from .inside import Inside
from .mixer import Mixer, Place
from .opening import owner_of

PLACES = {"embedding": (Place("weight"),)}


@FAMILIES.register("tokens")
@dataclass(frozen=True)
class Tokens(Family):
    """A table of which rows are looked up."""

    classes: ClassVar[tuple[str, ...]] = ("torch.nn.modules.sparse.Embedding",)
    on: ClassVar[str] = "embedding"

    def describe(self, module: Any) -> Mixer:
        return Mixer(
            kind="an embedding of tokens",
            width=module.embedding_dim,
            places=PLACES,
            shapes=shapes_of(module),
            table=True,
            opens=owner_of(module) is not None,
        )

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
        owner, places, shapes = owner_of(module), dict(PLACES), shapes_of(module)
        for name in ("cls_token", "pos_embed"):
            parameter = getattr(owner, name, None)
            if isinstance(parameter, nn.Parameter):
                places[name] = (Place(f"/{name}"),)
                shapes[f"/{name}"] = tuple(parameter.shape)
        return Mixer(
            kind="an embedding of patches",
            width=module.out_channels,
            places=places,
            shapes=shapes,
            causal=False,
            opens=owner is not None,
        )
