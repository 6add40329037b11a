"""Videos in a folder, with captions in a table; what every reader of video files builds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import PAIRS
from ...errors import UserError
from ..images.source import existing
from ..videos import check_installed, video_frames
from .files import opened
from .rows import KINDS
from .source import PairSource, check_frames, middle, need_a_split, of_split
from .stored import Folder, Gathered, StoredPairs
from .table import gather

LAYOUT = f"a table of videos and captions ({', '.join(KINDS)})"


@PAIRS.register("videos")
@dataclass(frozen=True, kw_only=True)
class Videos:
    """Videos in a folder, and a table with the path and the captions of one in each row, one file a split.

    A table is .csv or .tsv with a line of names, .jsonl, .json (a list of objects) or .parquet. Rows with the
    same video are brought together. Left out, counted and logged: rows without a caption, and those whose
    video is not there. Videos need the extra `video`.

    train, test: the tables; one may be left out
    video:       the column with the video's path from `root`
    caption:     the column with the caption, or with a list of them; or several such columns
    root:        the folder of the videos; where the table lies, if left out
    frames:      how many are read of a video, in the middles of as many equal parts of its duration
    """

    train: str | None = None
    test: str | None = None
    video: str = "video"
    caption: str | tuple[str, ...] = "caption"
    root: str | None = None
    frames: int = 8

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "videos")
        check_frames(self.frames)

    def build(self, split: str) -> PairSource:
        """Raises UserError on a file or column that is missing, a damaged line, or when no pair is left."""
        path = existing(of_split(split, self.train, self.test, "videos"), LAYOUT)
        root = path.parent if self.root is None else existing(self.root, "the folder of the videos")
        gathered = Gathered(str(path), "video")
        with opened(str(path)) as file:
            gather(gathered, file, path.suffix.lower(), self.video, self.caption)
        return stored_videos(gathered, root, self.frames)


@dataclass(frozen=True)
class StoredVideos:
    """Video files, decoded when asked for, with captions in memory. A `VideoSource`.

    pairs: the names of the files, paths from `root`, and their captions
    """

    pairs: StoredPairs
    root: Path
    num_frames: int

    @property
    def skipped(self) -> int:
        return self.pairs.skipped

    def __len__(self) -> int:
        return len(self.pairs)

    def frames(self, index: int) -> list[Image.Image]:
        return video_frames(self.root / self.pairs.name(index), self.num_frames)

    def image(self, index: int) -> Image.Image:
        return middle(self.frames(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self.pairs.captions(index)

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None


def stored_videos(gathered: Gathered, root: Path, frames: int) -> StoredVideos:
    """The videos that were gathered, of those in the folder `root`. Raises UserError without PyAV, and as
    `Gathered.build`."""
    check_installed()
    return StoredVideos(gathered.build(Folder(root)), root, frames)


def files_by_name(root: Path) -> Mapping[str, str]:
    """The files of a folder, each by its name and by that without its suffix; where two share one, the name
    in full is meant, then the first in order. Raises UserError where it is no folder."""
    if not root.is_dir():
        raise UserError(f"{root}: is no folder; expected the folder of the videos")
    names = sorted(name for name in os.listdir(root) if not name.startswith("."))  # noqa: PTH208
    found: dict[str, str] = {name: name for name in names}
    for name in names:
        found.setdefault(Path(name).stem, name)
    return found
