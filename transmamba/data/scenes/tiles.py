"""Tiles to pixels: pictures of any size, resampled to where they lie on a canvas, to a fraction of a pixel.

Along each axis a pixel takes the mean of the source under a triangle that is as wide as the pixel, or as a
source pixel where that is larger: area averaging downwards and bilinear interpolation upwards, as Pillow's
BILINEAR. Both axes are small matrix products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .programs import Object

Field = npt.NDArray[np.floating[Any]]


def paint_tile(canvas: Field, thing: Object, tile: npt.NDArray[np.uint8], ink: Field | None) -> None:
    """Draws a tile on (3, side, side) float32 of 0 to 255, in place: a square in the object's disc.

    tile: (1, S, S) how much ink, with the colour `ink` (3, 1, 1); (3, S, S); or (4, S, S) with alpha, by
          which its colours are multiplied
    """
    side, half = canvas.shape[-1], thing.size / 8**0.5
    top, cover_down, down = _axis((thing.y - half) * side, (thing.y + half) * side, side, tile.shape[1])
    left, cover_across, across = _axis((thing.x - half) * side, (thing.x + half) * side, side, tile.shape[2])
    cover = cover_down[:, None] * cover_across
    planes = down @ tile.astype(np.float32) @ across.T
    planes *= cover
    box = canvas[:, top : top + len(down), left : left + len(across)]
    if ink is not None:
        box += planes[0] * np.float32(1 / 255) * (ink - box)
        return
    alpha = planes[3] * np.float32(1 / 255) if len(planes) == 4 else cover
    box *= 1 - alpha
    box += planes[:3]


def _axis(low: float, high: float, side: int, count: int) -> tuple[int, Field, Field]:
    """Of `count` source pixels from `low` to `high`, in pixels: the first pixel that they touch within 0 to
    `side`; the share of each pixel, (N,), that they cover; and their weights in each, (N, count)."""
    first, last = max(0, int(np.floor(low))), min(side, int(np.ceil(high)))
    edges = np.arange(first, last + 1, dtype=np.float64) if last > first else np.zeros(1)
    cover = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    scale = count / (high - low)
    at = np.clip((edges[:-1] + 0.5 - low) * scale, 0, count)
    weights = 1 - np.abs(at[:, None] - (np.arange(count) + 0.5)) / max(scale, 1.0)
    weights = np.maximum(weights, 0, out=weights)
    weights /= weights.sum(1, keepdims=True)
    return first, cover.astype(np.float32), weights.astype(np.float32)


def stretched(picture: npt.NDArray[np.uint8], side: int) -> Field:
    """A square picture, (S, S, 3), as (3, side, side) float32."""
    resized = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
    canvas = np.empty((3, side, side), dtype=np.float32)
    canvas[:] = resized.transpose(2, 0, 1)
    return canvas
