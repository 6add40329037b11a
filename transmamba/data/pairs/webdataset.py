"""Tar shards in the layout of WebDataset, here or in a store, read at random by an index made once.

Layout: https://github.com/webdataset/webdataset, "The WebDataset format".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import PAIRS
from ...errors import UserError
from ..images.decoding import decode_upright, in_threads
from .captions import LeftOut
from .files import expand, read
from .shards import Index, index_of, spoken
from .source import PairSource, need_a_split, of_split

_COMPRESSED = (".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip")


@PAIRS.register("webdataset")
@dataclass(frozen=True, kw_only=True)
class WebDataset:
    """Tar shards with the files of a sample under one name: NAME.jpg (or .jpeg, .png, .webp) and its captions
    in NAME.txt, one a line, or in NAME.json.

    Shards lie in folders, or wherever fsspec reads: https:// (needs aiohttp), s3:// (s3fs), gs://
    (gcsfs), hf://. Each is read through once, and where everything is in it is kept in a small file. Samples
    without a picture or without captions are left out, counted and logged; a shard that is cut short is
    refused.

    train, test: paths of shards: {0000..0123}, {a,b}, * and $VARIABLE are filled in; one path, or a list;
        one of the splits may be left out
    caption_key: the key in a .json under which a caption is, or a list of them
    index:       the folder for the small files; if left out, .transmamba/ beside the shards, and the user's
        cache for remote ones
    """

    train: str | tuple[str, ...] | None = None
    test: str | tuple[str, ...] | None = None
    caption_key: str = "caption"
    index: str | None = None

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "webdataset")

    def build(self, split: str) -> PairSource:
        """Raises UserError on a shard that is missing, compressed or damaged, or when no pair is left."""
        patterns = of_split(split, self.train, self.test, "webdataset")
        shards = expand(patterns)
        for shard in shards:
            if shard.lower().endswith(_COMPRESSED):
                raise UserError(f"{shard}: nothing can be sought in what is compressed; unpack it to a .tar")
        folder = Path(os.path.expandvars(self.index)).expanduser() if self.index is not None else None
        found = list(
            in_threads(
                range(len(shards)),
                lambda n: index_of(shards[n], self.caption_key, folder),
                "indexing shards",
                heavy=True,
            )
        )
        return _joined(shards, found, self.caption_key, patterns)

    @staticmethod
    def recognise(path: Path) -> WebDataset | None:
        """Of a .tar, or a folder with some, which is then both splits: what is measured or looked at is
        one. Shards may lie in its train/ and test/."""
        splits = [path / split for split in ("train", "test")]
        if all(any(folder.glob("*.tar")) for folder in splits):
            train, test = (str(folder / "*.tar") for folder in splits)
            return WebDataset(train=train, test=test)
        if path.is_file() and path.suffix.lower() == ".tar":
            return WebDataset(train=str(path), test=str(path))
        shards = str(path / "*.tar")
        return WebDataset(train=shards, test=shards) if any(path.glob("*.tar")) else None


@dataclass(frozen=True)
class ShardPairs:
    """Samples of tar shards, read when asked for. A `PairSource`.

    starts:   (S + 1,) int64, the number of each shard's first sample, and the end
    keys, pictures, captions_at, in_json: of all N samples, as in `Index`
    """

    shards: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    keys: npt.NDArray[np.bytes_]
    pictures: npt.NDArray[np.int64]
    captions_at: npt.NDArray[np.int64]
    in_json: npt.NDArray[np.bool_]
    caption_key: str
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    def shard(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return self.shards[int(np.searchsorted(self.starts, index, side="right")) - 1]

    def image(self, index: int) -> Image.Image:
        shard = self.shard(index)
        return decode_upright(read(shard, *self.pictures[index].tolist()), self._name(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """Raises UserError when the shard is no longer what was indexed."""
        content = read(self.shard(index), *self.captions_at[index].tolist())
        try:
            return spoken(content, bool(self.in_json[index]), self.caption_key)
        except ValueError as error:
            raise UserError(f"{self._name(index)}: its captions cannot be read ({error})") from None

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None

    def _name(self, index: int) -> str:
        return f"{self.shard(index)}: {os.fsdecode(bytes(self.keys[index]))}"


def _joined(shards: list[str], found: list[Index], caption_key: str, patterns: object) -> ShardPairs:
    left_out = LeftOut()
    for index in found:
        for reason, first, count in index.left_out:
            left_out.add(reason, first, count)
    starts = np.cumsum([0, *(len(index.keys) for index in found)], dtype=np.int64)
    where = patterns if isinstance(patterns, str) else f"{shards[0]} and {len(shards) - 1} more"
    if not starts[-1]:
        raise left_out.nothing(str(where))
    left_out.log(str(where))
    return ShardPairs(
        tuple(shards),
        starts,
        np.concatenate([index.keys for index in found if len(index.keys)]),
        np.concatenate([index.pictures for index in found]),
        np.concatenate([index.captions for index in found]),
        np.concatenate([index.in_json for index in found]),
        caption_key,
        left_out.total,
    )
