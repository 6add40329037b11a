"""Drawn clips with captions, made when asked for: videos without a download."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.load import Part
from ...config.registry import PAIRS
from ...errors import UserError
from ..images.source import check_split
from ..scenes import Clips
from .scene_tiles import Tiles
from .scenes import check_drawn, numbered
from .source import PairSource, middle


@PAIRS.register("scene_clips")
@dataclass(frozen=True, kw_only=True)
class DrawnClips:
    """Clips of coloured shapes in which two things happen one after the other, each a function of (seed,
    split, number), with captions that say in which order.

    side:                         pixels a side
    frames:                       of a clip, at least 3
    pairs:                        how many pairs of colour and kind there are, at least 5; all if left out.
        With few, many clips show the same things and differ in what happens
    count_train, count_test:      clips of the splits
    split_train, split_test:      which of the clips' own splits: train, val, test, or what training never
        sees: unseen_pairs, unseen_objects, unseen_style, unseen_templates, swapped_relations
    captions_train, captions_test: captions a clip, each in another wording; there are 10, in
        unseen_templates 2
    seed:                         of the drawing
    tiles:                        pictures among the objects
    photographs:                  a pair reader of pictures that lie behind the objects of a third of the
        clips; charts and drawings among them are left out, and their captions are not read
    """

    side: int = 64
    frames: int = 8
    pairs: int | None = None
    count_train: int = 20_000
    count_test: int = 1_000
    split_train: str = "train"
    split_test: str = "test"
    captions_train: int = 10
    captions_test: int = 1
    seed: int = 0
    tiles: Tiles = field(default_factory=Tiles)
    photographs: Annotated[Any, Part(PAIRS)] | None = None

    def __post_init__(self) -> None:
        if self.tiles.filling:
            raise UserError(
                f"tiles.filling is {self.tiles.filling:g}; no clip shows one tile that fills it, leave it out"
            )
        check_drawn(self, "clips", partial(Clips, frames=self.frames, pairs=self.pairs))

    def build(self, split: str) -> PairSource:
        """Raises UserError for a side that cannot be drawn, and as the readers of tiles do."""
        check_split(split)
        clips = self.clips(split)
        clips.pictures(0)
        return ClipPairs(clips, getattr(self, f"captions_{split}"))

    def clips(self, split: str) -> Clips:
        return Clips(**numbered(self, split), frames=self.frames, pairs=self.pairs)


@dataclass(frozen=True)
class ClipPairs:
    """Clips, drawn when asked for. A `VideoSource`.

    wordings: captions a clip
    """

    clips: Clips
    wordings: int
    skipped: int = 0
    drawn: bool = True

    @property
    def num_frames(self) -> int:
        return self.clips.frames

    def __len__(self) -> int:
        return len(self.clips)

    def frames(self, index: int) -> list[Image.Image]:
        return [Image.fromarray(picture) for picture in self.clips.pictures(index)]

    def image(self, index: int) -> Image.Image:
        return middle(self.frames(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self.clips.captions(index, self.wordings)

    def twin(self, index: int) -> int | None:
        return self.clips.twin(index)

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None
