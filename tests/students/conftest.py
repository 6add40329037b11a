"""Every registered student model, small: 32-pixel gray pictures in patches of 8, 3 layers of 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import transmamba  # noqa: F401  (registers the students in timm)


@pytest.fixture
def make_student(randomise: Callable[..., None]) -> Callable[..., Any]:
    """make_student(name, **kwargs): a small random instance of a registered model, in evaluation mode."""

    def make(name: str, seed: int = 0, **kwargs: Any) -> nn.Module:
        shape = dict(img_size=32, patch_size=8, in_chans=1, embed_dim=32, depth=3, num_classes=5)
        if name.startswith("ssd_vit"):
            shape["num_heads"] = 2
        model = timm.create_model(name, **{**shape, **kwargs})
        randomise(model, seed)
        return model.eval()

    return make


@pytest.fixture
def images() -> Tensor:
    """(2, 1, 32, 32)"""
    return torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(8))
