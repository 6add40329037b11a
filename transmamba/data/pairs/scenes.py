"""Drawn scenes with captions, made when asked for: pairs without a download, unless tiles are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.load import Part
from ...config.registry import PAIRS
from ...errors import UserError
from ..images.source import check_split
from ..scenes import Clips, Scenes
from .scene_tiles import Tiles, stock
from .source import PairSource


@PAIRS.register("scenes")
@dataclass(frozen=True, kw_only=True)
class DrawnScenes:
    """Scenes of coloured shapes, each a function of (seed, split, number), with captions in several wordings.

    side:                         pixels a side
    count_train, count_test:      pictures of the splits
    split_train, split_test:      which of the scenes' own splits: train, val, test, or what training never
        sees: unseen_pairs, unseen_objects, unseen_style, unseen_templates, swapped_relations
    captions_train, captions_test: captions a picture, each in another wording; there are 12, in
        unseen_templates 4
    seed:                         of the drawing
    tiles:                        pictures among the objects
    photographs:                  a pair reader of pictures that lie behind the objects of a third of the
        scenes; charts and drawings among them are left out, and their captions are not read
    """

    side: int = 64
    count_train: int = 100_000
    count_test: int = 2_000
    split_train: str = "train"
    split_test: str = "test"
    captions_train: int = 12
    captions_test: int = 1
    seed: int = 0
    tiles: Tiles = field(default_factory=Tiles)
    photographs: Annotated[Any, Part(PAIRS)] | None = None

    def __post_init__(self) -> None:
        check_drawn(self, "pictures", Scenes)

    def build(self, split: str) -> PairSource:
        """Raises UserError for a side that cannot be drawn, and as the readers of tiles do."""
        check_split(split)
        scenes = self.scenes(split)
        scenes.picture(0)
        return ScenePairs(scenes, getattr(self, f"captions_{split}"))

    def scenes(self, split: str) -> Scenes:
        return Scenes(**numbered(self, split))


def check_drawn(config: Any, what: str, drawn: Callable[..., Scenes | Clips]) -> None:
    """Raises UserError for splits that are one, and for more captions than there are wordings."""
    if config.split_train == config.split_test:
        raise UserError(
            f"split_train and split_test are both {config.split_train!r}, so that the test {what} would be "
            "seen in training; write another"
        )
    for split in ("train", "test"):
        known = drawn(**_numbered(config, split)).variants
        if not 1 <= (asked := getattr(config, f"captions_{split}")) <= known:
            raise UserError(f"captions_{split} {asked}: write a number from 1 to {known}")


def numbered(config: Any, split: str) -> dict[str, Any]:
    """What `Scenes` and `Clips` both are told of one of the reader's splits, the pictures in it decoded."""
    own = _numbered(config, split)
    return {**own, "stock": stock(config.tiles, config.photographs, own["split"])}


def _numbered(config: Any, split: str) -> dict[str, Any]:
    own = {name: getattr(config, f"{name}_{split}") for name in ("split", "count")}
    return {**own, "side": config.side, "seed": config.seed}


@dataclass(frozen=True)
class ScenePairs:
    """Scenes, drawn when asked for. A `PairSource`.

    wordings: captions a picture
    """

    scenes: Scenes
    wordings: int
    skipped: int = 0
    drawn: bool = True

    def __len__(self) -> int:
        return len(self.scenes)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.scenes.picture(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self.scenes.captions(index, self.wordings)

    def twin(self, index: int) -> int | None:
        return self.scenes.twin(index)

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None
