"""Students whose weights lie in pieces on several processes, which bring them together unit by unit."""

from __future__ import annotations

from torch import nn


def is_spread(module: nn.Module) -> bool:
    """Whether FSDP2 (tensors in pieces) or ZeRO-3 (empty ones) holds it: then all processes call its units
    equally often, with gradients or without."""
    return any(hasattr(each, "full_tensor") or not each.numel() for each in module.parameters())
