"""DiDeMo: videos of half a minute, each with several descriptions of its moments.

Hendricks et al., "Localizing moments in video with natural language", ICCV 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...config.registry import PAIRS
from ...errors import UserError
from ..images.source import existing
from .captions import EMPTY, texts
from .coco import read_json, records
from .source import PairSource, check_frames, need_a_split, of_split
from .stored import Gathered
from .videos import files_by_name, stored_videos

EXPECTED = "DiDeMo's list of records, such as train_data.json"


@PAIRS.register("didemo")
@dataclass(frozen=True, kw_only=True)
class Didemo:
    """DiDeMo, in its own JSON: `[{"video", "description", "times"}]`, one file a split.

    All descriptions of a video, joined in the file's order, are its one caption: retrieval of whole videos by
    paragraphs, as in CLIP4Clip (arXiv 2104.08860, section 4.1). The moments, `times`, are not read. A video
    is found by its name, or by that with another suffix; those that are not there are left out, counted and
    logged. Videos need the extra `video`.

    train, test: the JSON files (train_data.json, test_data.json); one may be left out
    videos:      the folder of the videos
    frames:      how many are read of a video, in the middles of as many equal parts of its duration
    """

    videos: str
    train: str | None = None
    test: str | None = None
    frames: int = 8

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "didemo")
        check_frames(self.frames)

    def build(self, split: str) -> PairSource:
        """Raises UserError on a missing file or folder, a file of another kind, or when no pair is left."""
        path = existing(of_split(split, self.train, self.test, "didemo"), EXPECTED)
        root = existing(self.videos, "the folder of the videos")
        found = read_json(path)
        if not isinstance(found, list):
            raise UserError(f"{path}: is no list; expected {EXPECTED}")
        listed = records({"records": found}, "records", ("video", "description"), path, EXPECTED)
        there, gathered = files_by_name(root), Gathered(str(path), "video")
        for video, said in _together(listed, gathered, str(path)).items():
            name = there.get(video) or there.get(video.rpartition(".")[0]) or video
            gathered.add(name, (" ".join(said),), video)
        return stored_videos(gathered, root, self.frames)


def _together(listed: list[Any], gathered: Gathered, where: str) -> dict[str, list[str]]:
    """The descriptions of each video."""
    found: dict[str, list[str]] = {}
    for number, record in enumerate(listed):
        said = texts(record["description"], f"{where}: record {number}")
        if said:
            found.setdefault(str(record["video"]), []).extend(said)
        else:
            gathered.left_out.add(EMPTY, f"record {number}")
    return found
