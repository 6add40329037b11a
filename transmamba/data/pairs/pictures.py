"""Pictures in a folder, without captions."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...config.registry import PAIRS
from ..images.folder import log_left_out, pictures_below, suffixes
from ..images.source import existing
from .source import PairSource, need_a_split, of_split
from .stored import Folder, StoredPairs


@PAIRS.register("pictures")
@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures alone, for what needs no captions.

    Every file with the suffix of a format that Pillow decodes, in the folder and below it, behind links too;
    sorted. Hidden files are left out, and how many files of other kinds are is logged.

    train, test: the folders; one may be left out
    """

    train: str | None = None
    test: str | None = None

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "pictures")

    def build(self, split: str) -> PairSource:
        """Raises UserError when the folder is missing or holds no picture."""
        folder = existing(of_split(split, self.train, self.test, "pictures"), "a folder of pictures")
        folder = folder.resolve() if not folder.name else folder  # "." has no parent of its own
        left_out: Counter[str] = Counter()
        found = pictures_below(folder, set(), left_out)
        log_left_out(folder, left_out)
        inside = [os.path.relpath(name, os.fsencode(folder.name)) for name in found]
        return StoredPairs(Folder(folder), np.array(inside, dtype=np.bytes_), None)

    @staticmethod
    def recognise(path: Path) -> Pictures | None:
        """Of a folder with pictures in train/ and test/, or anywhere, which is then both splits: what is
        measured or looked at is one."""
        splits = [path / split for split in ("train", "test")]
        if all(map(_holds_pictures, splits)):
            return Pictures(train=str(splits[0]), test=str(splits[1]))
        return Pictures(train=str(path), test=str(path)) if _holds_pictures(path) else None


def _holds_pictures(folder: Path) -> bool:
    """Whether there is one in the folder or below it, found without listing the rest."""
    return folder.is_dir() and any(path.suffix.lower() in suffixes() for path in folder.rglob("*"))
