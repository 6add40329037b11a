"""A text tower small enough to be looked through."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba.core.layout import Sequence
from transmamba.views.embeddings import TokenEmbedding
from transmamba.views.heads import LanguageHead
from transmamba.views.sublayers import Affine, Attention, Mlp, Norm
from transmamba.views.view import Tower, View


def text_view(rms: bool, head: str) -> View:
    """A causal text tower of 8 channels, 11 words, 2 blocks; its parameters random, in float64."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def linear(out: int, inner: int) -> Affine:
        return Affine(random(out, inner) / inner**0.5, random(out))

    def norm() -> Norm:
        return Norm(1 + 0.3 * random(8), None if rms else random(8), 1e-6, rms)

    sublayers: list[Attention | Mlp] = []
    for _ in range(2):
        q, k, v, o = (linear(8, 8) for _ in range(4))
        sublayers.append(Attention(norm(), q, k, v, o, heads=2, causal=True))
        sublayers.append(Mlp(norm(), linear(12, 8), linear(8, 12), F.silu, scale=random(8)))
    table = random(11, 8)
    embedding = TokenEmbedding(table, None if rms else random(6, 8))
    tower = Tower(embedding, tuple(sublayers), norm(), Sequence())
    heads: dict[str, Any] = {
        "tied": LanguageHead(Affine(table)),
        "untied": LanguageHead(linear(11, 8)),
    }
    return View({"text": tower}, {"text": heads[head]})
