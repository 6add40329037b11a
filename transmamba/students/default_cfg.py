"""What timm is told of a student's images and parts by default (its `default_cfg`)."""

from __future__ import annotations

from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def default_cfg(size: int = 224, num_classes: int = 1000) -> dict[str, Any]:
    """For square RGB images of `size` pixels, without pretrained weights."""
    return {
        "url": "",
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "pool_size": None,
        "crop_pct": 0.9 if size == 224 else 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
    }
