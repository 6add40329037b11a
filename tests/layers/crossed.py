"""What modules in which vision reads a prompt are tried on."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MASK", "inputs"]

MASK = torch.tensor(
    [
        [0, 0, 1, 1, 1, 1, 1, 0, 0],  # padding, prompt, answer
        [1, 1, 0, 0, 0, 1, 1, 0, 0],  # two turns with an answer between them
        [0, 0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],  # no prompt at all
    ],
    dtype=torch.bool,
)


def inputs(visual: int = 5, seed: int = 0, *, dim: int = 10, language: int = 7) -> tuple[Tensor, Tensor]:
    """Vision (4, visual, dim) and language (4, 9, language) of `MASK`'s rows, in float64."""
    generator = torch.Generator().manual_seed(seed)
    vision = torch.randn(len(MASK), visual, dim, generator=generator, dtype=torch.float64)
    return vision, torch.randn(*MASK.shape, language, generator=generator, dtype=torch.float64)
