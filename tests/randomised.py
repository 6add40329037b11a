"""Parameters that no initialisation would give."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomise_(module: nn.Module, seed: int = 0) -> None:
    """Every parameter random: matrices keep their input's scale, norms are near 1, biases are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            noise = 1 + 0.3 * noise
        elif parameter.dim() >= 2 and "token" not in name and "pos" not in name:
            noise = noise / parameter[0].numel() ** 0.5
        else:
            noise = 0.3 * noise
        parameter.copy_(noise)
