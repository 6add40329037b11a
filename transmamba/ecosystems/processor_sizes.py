"""What sizes a Hugging Face image processor makes, in timm's words: input size, crop_pct, crop_mode."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Size = tuple[int, int]


def resized_of(processor: Mapping[str, Any]) -> Size | int:
    """Height and width of the resized picture, or its short side; of 256, [256, 256],
    {"height": 256, "width": 256} and {"shortest_edge": 256}, which are all in use. Raises ValueError."""
    size = _given(processor, "size")
    if isinstance(size, dict):
        return size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    return (size, size) if processor.get("default_to_square", True) else size


def crop_of(processor: Mapping[str, Any]) -> Size:
    """Height and width of the crop. Raises ValueError."""
    size = _given(processor, "crop_size")
    if isinstance(size, dict):
        if "shortest_edge" in size:
            raise ValueError(f"crop_size {size} has no height and width")
        return size["height"], size["width"]
    return size, size


def _given(processor: Mapping[str, Any], key: str) -> dict[str, int] | int:
    value = processor.get(key)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if isinstance(value, Mapping):
        sides = {name: int(side) for name, side in value.items() if side is not None}
        if set(sides) in ({"height", "width"}, {"shortest_edge"}) and min(sides.values()) > 0:
            return sides
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError(f"{key} {value!r} is no number of pixels, height and width, or shortest_edge")


def sized(resized: Size | int, crop: Size | None, own: Size | None = None) -> tuple[Size, float, str]:
    """Input size, crop_pct and crop_mode.

    own: what the model takes, where the file says nothing of sizes: the picture is resized, and cropped by
        the same share, to that

    Raises ValueError for what timm has no words for.
    """
    if crop is None:
        if isinstance(resized, int):
            raise ValueError(
                f"size shortest_edge {resized} without do_center_crop makes pictures of many shapes"
            )
        return own or resized, 1.0, "squash"
    if isinstance(resized, int):
        if crop[0] != crop[1]:
            raise ValueError(f"size shortest_edge {resized} with an oblong crop_size {crop} is not covered")
        return own or crop, _share(crop, (resized, resized)), "center_down"
    # transformers cuts off the smaller half of an odd margin first, timm's rounding does so but for 3, 7 ...
    if any((side - to) % 4 == 3 for side, to in zip(resized, crop, strict=True)):
        raise ValueError(
            f"crop_size {crop} of size {resized}, with a margin that timm rounds up, is not covered"
        )
    return own or crop, _share(crop, resized), "squash"


def _share(crop: Size, resized: Size) -> float:
    """The crop_pct by which timm, which rounds down, resizes to just so many pixels before it crops; the
    largest that serves both sides. Raises ValueError where none does."""
    share = min(to / side for to, side in zip(crop, resized, strict=True))
    while any(math.floor(to / share) < side for to, side in zip(crop, resized, strict=True)):
        share = math.nextafter(share, 0)
    if tuple(math.floor(to / share) for to in crop) != resized:
        raise ValueError(f"crop_size {crop} is no share of size {resized} that serves both sides")
    return share
