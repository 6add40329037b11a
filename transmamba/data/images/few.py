"""A few images of another reader's, as benchmarks of little data take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from PIL import Image

from ...config.load import Part, dump
from ...config.registry import READERS
from ...errors import UserError, refuse_all
from ..hashing import permutation
from ..kept import Kept
from .decoding import in_threads
from .source import ArraySource, ImageSource

_KEPT = Kept(32)  # what `keep` keeps in this process
_SPLITS = ("train", "test")


@READERS.register("few")
@dataclass(frozen=True, kw_only=True)
class Few:
    """So many images of `data`, drawn at random but always the same, squeezed to a square and in memory: so
    VTAB takes 1,000 of each of its tasks (arXiv 1910.04867).

    data:        a data reader
    train, test: images of the splits; test null: all
    side:        pixels a side, which is best the model's own
    seed:        which images they are
    keep:        for the next run in this process too, which is then blind to files that have changed
    """

    data: Annotated[Any, Part(READERS)]
    train: int = 1000
    test: int | None = 2000
    side: int = 32
    seed: int = 0
    keep: bool = False

    def __post_init__(self) -> None:
        refuse_all(
            [
                f"{name} is {value}; write a number of at least 1"
                for name in ("train", "test", "side")
                if (value := getattr(self, name)) is not None and value < 1
            ]
        )

    def build(self, split: str) -> ImageSource:
        """Raises UserError as the reader does, and where it has fewer images."""
        if not self.keep:
            return self._made(split)
        kept: ImageSource = _KEPT.get(f"{split} {dump(self)}", lambda: self._made(split))
        return kept

    def _made(self, split: str) -> ArraySource:
        source: ImageSource = self.data.build(split)
        count = getattr(self, split) or len(source)
        if count > len(source):
            raise UserError(f"{split} is {count}, but the data has {len(source)} images there; write no more")
        chosen = np.sort(permutation(len(source), self.seed, _SPLITS.index(split))[:count])
        side = (self.side, self.side)

        def pixels(number: int) -> np.ndarray:
            picture = _on_white(source.image(int(number)))
            return np.asarray(picture if picture.size == side else picture.resize(side, _FILTER))

        stacked = np.stack(list(in_threads(chosen, pixels, f"decoding {split} images")))
        return ArraySource(stacked, source.labels[chosen], source.classes)


_FILTER = Image.Resampling.BICUBIC


def _on_white(picture: Image.Image) -> Image.Image:
    """As RGB; what is transparent stands on white."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture.convert("RGBA"))
    return ground.convert("RGB")
