"""MSR-VTT: ten thousand clips with twenty captions each, and the split 1k-A of its retrieval.

Xu et al., "MSR-VTT: a large video description dataset", CVPR 2016; 1k-A: Yu et al., "A joint sequence fusion
model for video question answering and retrieval", ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.registry import PAIRS
from ...errors import UserError, suggest
from ..images.source import check_split, existing
from .captions import EMPTY, texts
from .coco import read_json, records
from .files import opened
from .rows import rows
from .source import PairSource, check_frames
from .stored import Gathered
from .videos import files_by_name, stored_videos

EXPECTED = "MSR-VTT's file, such as MSRVTT_data.json"
Captioned = dict[str, list[tuple[str, Any]]]  # of each video, where each caption stands, and the caption


@PAIRS.register("msrvtt")
@dataclass(frozen=True, kw_only=True)
class Msrvtt:
    """MSR-VTT, in its JSON: `{"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}`.

    With `test_pairs` (MSRVTT_JSFUSION_test.csv: columns video_id, sentence) the test split is 1k-A, one
    caption of each of its thousand videos, and every other video is for training, which is its Training-9K.
    Without, the file's own split is used, with all captions. Videos are found by their ids, whatever their
    suffix; those that are not there are left out, counted and logged. Videos need the extra `video`.

    annotations:  the JSON file, or a list of them (train_val_videodatainfo.json, test_videodatainfo.json)
    videos:       the folder of the videos
    test_pairs:   the table of 1k-A
    train_splits: which of the file's splits training is limited to, such as [train, validate] for
        Training-7K; if left out, all but what is for testing
    test_splits:  which of them are for testing, without `test_pairs`
    frames:       how many are read of a video, in the middles of as many equal parts of its duration
    """

    annotations: str | tuple[str, ...]
    videos: str
    test_pairs: str | None = None
    train_splits: tuple[str, ...] | None = None
    test_splits: tuple[str, ...] = ("test",)
    frames: int = 8

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if not self.annotations:
            raise UserError("annotations: names no file; write the path of MSRVTT_data.json")

    def build(self, split: str) -> PairSource:
        """Raises UserError on a missing file or folder, a file of another kind, or when no pair is left."""
        check_split(split)
        root = existing(self.videos, "the folder of the videos")
        paths = (self.annotations,) if isinstance(self.annotations, str) else self.annotations
        files = [existing(path, EXPECTED) for path in paths]
        if split == "test" and self.test_pairs is not None:
            where, wanted = self.test_pairs, self._tested(self.test_pairs)
        else:
            where, wanted = ", ".join(map(str, files)), self._captioned(split, files)
        there, gathered = files_by_name(root), Gathered(where, "video")
        for video, said in wanted.items():
            if not said:
                gathered.left_out.add(EMPTY, video)
            for line, caption in said:
                gathered.add(there.get(video, video), texts(caption, f"{where}: {line}"), line)
        return stored_videos(gathered, root, self.frames)

    def _captioned(self, split: str, files: list[Path]) -> Captioned:
        """The videos of a split, with all their captions."""
        splits = dict(pair for path in files for pair in _splits(path))
        chosen = self._chosen(split, splits, files[0])
        found: Captioned = {video: [] for video in splits if video in chosen}
        for path in files:
            sentences = records(
                read_json(path), "sentences", ("video_id", "caption"), path, EXPECTED, known_by="video_id"
            )
            for number, record in enumerate(sentences):
                if record["video_id"] in found:
                    found[record["video_id"]].append((f"sentence {number}", record["caption"]))
        return found

    def _chosen(self, split: str, splits: Mapping[str, str], where: Path) -> set[str]:
        """The videos that make up a split; `splits` has the file's own of each."""
        known = set(splits.values())
        for name in self.test_splits if split == "test" else self.train_splits or ():
            if name not in known:
                raise UserError(f"{where}: no split {name!r}{suggest(name, known)}")
        if self.test_pairs is None:
            tested = {video for video, own in splits.items() if own in self.test_splits}
        else:
            tested = set(self._tested(self.test_pairs))
        limit = known if self.train_splits is None else set(self.train_splits)
        return tested if split == "test" else {v for v, own in splits.items() if own in limit} - tested

    @staticmethod
    def _tested(table: str) -> Captioned:
        path = existing(table, "the table of 1k-A, MSRVTT_JSFUSION_test.csv")
        found: Captioned = {}
        with opened(str(path)) as file:
            for line, row in rows(file, path.suffix.lower(), ("video_id", "sentence"), str(path)):
                found.setdefault(str(row["video_id"]).strip(), []).append((line, row["sentence"]))
        return found


def _splits(path: Path) -> Iterator[tuple[str, str]]:
    """Each video of a file, and its split."""
    for record in records(read_json(path), "videos", ("video_id", "split"), path, EXPECTED):
        yield str(record["video_id"]), str(record["split"])
