"""What timm is told of a student: its `default_cfg`, and the arguments that follow from teacher and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import UserError
from ..views.view import View


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


def following(
    kind: str,
    model: str | None,
    shape_of: Callable[[View], dict[str, Any]],
    *,
    num_classes: int,
    input_size: tuple[int, int, int] | None,
    view: View | None,
) -> dict[str, Any]:
    """Constructor arguments: classes, channels and pixels; without `model` also the teacher's shape.

    Raises UserError where a shape is wanted and there is no teacher.
    """
    arguments: dict[str, Any] = dict(num_classes=num_classes)
    if input_size is not None:
        arguments |= dict(in_chans=input_size[0], img_size=list(input_size[1:]))
    if model is None:
        if view is None:
            raise UserError(f"student {kind} takes its shape from a teacher; name one, or set student.model")
        arguments |= shape_of(view)
    return arguments
