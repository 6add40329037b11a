"""What a data loader hands to the trainer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """One micro-batch, normalised for the model.

    images:  (B, C, H, W) float32
    targets: (B,) int64 class numbers, or (B, K) float32 probabilities after mixup or cutmix
    index:   (B,) int64, the image's number in its split's source
    """

    images: Tensor
    targets: Tensor
    index: Tensor

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            self.targets.to(device, non_blocking=non_blocking),
            self.index.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.index.pin_memory())
