"""A stock of small pictures, so that scenes of tiles need no data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from transmamba.data.images.source import ArraySource
from transmamba.data.scenes.stock import Stock

NAMES = tuple(f"{mood} {thing}" for mood in ("sad", "glad", "old", "red") for thing in "abcdefghijklmnopqrst")
CLASSES = ("airplane", "deer", "frog", "fire_truck")


def classified(classes: tuple[str, ...], side: int, channels: int, each: int = 3) -> ArraySource:
    """`each` noisy pictures of every class."""
    generator = np.random.default_rng(side)
    shape = (len(classes) * each, side, side, channels)
    labels = np.arange(len(classes)).repeat(each)
    return ArraySource(generator.integers(0, 256, shape, dtype=np.uint8), labels, classes)


def stock(**changed: Any) -> Stock:
    """All sorts of tiles and two photographs, but for what is changed."""
    generator = np.random.default_rng(1)
    emoji = {}
    for name in NAMES:
        alpha = generator.integers(0, 256, (1, 9, 9))
        colours = generator.integers(0, 256, (3, 9, 9)) * alpha // 255
        emoji[name] = np.concatenate([colours, alpha]).astype(np.uint8)
    photographs = tuple(
        generator.integers(0, 256, shape, dtype=np.uint8) for shape in ((12, 20, 3), (20, 12, 3))
    )
    usual: dict[str, Any] = dict(
        emoji=emoji,
        digits=classified(tuple("0123456789"), 14, 1),
        pictures=classified(CLASSES, 16, 3),
        photographs=photographs,
    )
    return Stock(**{**usual, **changed})
