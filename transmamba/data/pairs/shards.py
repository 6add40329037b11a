"""The index of a tar shard: where in it each picture and its caption stand.

Made once and kept as a small file, so that a picture has a number and is read by its place: the order of
training is then a function of (seed, step), as for any other data.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ..cache import cache_folder, write_whole
from .captions import EMPTY, LeftOut, texts
from .files import is_remote, opened, size_and_stamp

PICTURES = ("png", "jpg", "jpeg", "webp")
CAPTIONS = ("txt", "json")
_VERSION = 1
# WebDataset's convention: a sample is the files of one path up to the first dot of its last part.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_BLOCK = 2**20

Span = tuple[int, int]  # where the content of a file begins in its shard, and how long it is

logger = logging.getLogger("transmamba.data")


@dataclass(frozen=True)
class Index:
    """Of one shard with n samples.

    keys:     (n,) bytes, what the files of a sample are called
    pictures: (n, 2) int64, offset and size in bytes
    captions: (n, 2) int64
    in_json:  (n,) bool, whether the caption is in a .json and not in a .txt
    left_out: (reason, first, pairs) of what is in the shard besides
    """

    keys: npt.NDArray[np.bytes_]
    pictures: npt.NDArray[np.int64]
    captions: npt.NDArray[np.int64]
    in_json: npt.NDArray[np.bool_]
    left_out: list[tuple[str, str, int]]

    def save(self, stamp: str) -> bytes:
        file = io.BytesIO()
        np.savez(
            file,
            keys=self.keys,
            pictures=self.pictures,
            captions=self.captions,
            in_json=self.in_json,
            said=np.array(json.dumps({"stamp": stamp, "left_out": self.left_out})),
        )
        return file.getvalue()

    @classmethod
    def load(cls, path: Path, stamp: str) -> Index | None:
        """None where there is none of that stamp, or a torn one."""
        try:
            with np.load(path, allow_pickle=False) as file:
                said = json.loads(str(file["said"]))
                if said["stamp"] != stamp:
                    return None
                return cls(
                    file["keys"],
                    file["pictures"],
                    file["captions"],
                    file["in_json"],
                    [(reason, first, count) for reason, first, count in said["left_out"]],
                )
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error):
            return None


def index_of(shard: str, caption_key: str, folder: Path | None) -> Index:
    """The index of a shard, from its file or made now and kept there.

    caption_key: where a caption is in a .json
    folder:      where the file is kept; if None, in .transmamba/ beside a local shard, in the cache for a
                 remote one
    Raises UserError on a shard that cannot be read or is cut short.
    """
    size, changed = size_and_stamp(shard)
    stamp = json.dumps([_VERSION, size, changed, caption_key])
    path = _path(shard, caption_key, folder)
    found = Index.load(path, stamp)
    if found is None:
        found = make_index(shard, caption_key)
        try:
            write_whole(path, found.save(stamp))
        except OSError as error:
            logger.warning("%s: its index is not kept (%s); write index: FOLDER", shard, error)
    return found


def _path(shard: str, caption_key: str, folder: Path | None) -> Path:
    name = shard.rstrip("/").rpartition("/")[2]
    beside = folder is None and not is_remote(shard)
    # Beside the shards the path says which; other machines may see it under another.
    identity = caption_key if beside else f"{shard} {caption_key}"
    digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    place = Path(shard).parent / ".transmamba" if beside else folder or cache_folder("shards")
    return place / f"{name}.{digest}.npz"


def make_index(shard: str, caption_key: str) -> Index:
    """Reads the shard through. Raises UserError when it cannot be, is cut short, or names a file twice."""
    left_out = LeftOut()
    samples: list[tuple[bytes, Span, Span, bool]] = []
    for key, found in _members(shard).items():
        picture = next((found[kind] for kind in PICTURES if kind in found), None)
        kind = next((kind for kind in CAPTIONS if kind in found), None)
        if picture is None and kind is not None:
            left_out.add("without a picture", f"{shard}: {key}")
        elif picture is not None and kind is None:
            left_out.add("without a file of captions", f"{shard}: {key}")
        elif picture is not None and kind is not None:
            try:
                said = spoken(found[kind].content, kind == "json", caption_key)
            except ValueError as error:
                left_out.add("whose captions cannot be read", f"{shard}: {key}.{kind}: {error}")
                continue
            if not said:
                left_out.add(EMPTY, f"{shard}: {key}")
                continue
            name = key.encode("utf-8", "surrogateescape")
            samples.append((name, picture.span, found[kind].span, kind == "json"))
    keys, pictures, captions, in_json = zip(*samples, strict=True) if samples else ((), (), (), ())
    return Index(
        np.array(keys, dtype=np.bytes_),
        np.array(pictures, dtype=np.int64).reshape(-1, 2),
        np.array(captions, dtype=np.int64).reshape(-1, 2),
        np.array(in_json, dtype=np.bool_),
        left_out.entries(),
    )


def spoken(content: bytes, in_json: bool, caption_key: str) -> tuple[str, ...]:
    """The captions in a .txt, one a line, or under `caption_key` in a .json. Raises ValueError when it is
    damaged."""
    text = content.decode("utf-8-sig")
    if not in_json:
        return texts(text.split("\n"), "")
    found: Any = json.loads(text)
    if not isinstance(found, dict) or caption_key not in found:
        keys = ", ".join(found) if isinstance(found, dict) else "no object"
        raise ValueError(f"no {caption_key!r}, only {keys}")
    return texts(found[caption_key], caption_key)


@dataclass(frozen=True)
class _File:
    """A file in a shard; `content` of one of captions."""

    span: Span
    content: bytes = b""


def _members(shard: str) -> dict[str, dict[str, _File]]:
    """The files of each sample by their kind."""
    found: dict[str, dict[str, _File]] = {}
    try:
        with opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                match = _MEMBER.fullmatch(member.name)
                kind = match[2].lower() if match is not None else ""
                if match is None or kind not in (*PICTURES, *CAPTIONS) or not member.isreg():
                    continue
                sample = found.setdefault(match[1], {})
                if kind in sample:
                    raise UserError(f"{shard}: holds {member.name} twice; samples need names of their own")
                # Captions are read on the way: going back for them is dear where the shard is far away.
                content = tar.extractfile(member) if kind in CAPTIONS else None
                sample[kind] = _File((member.offset_data, member.size), content.read() if content else b"")
            _check_end(file, tar.offset, shard)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # tarfile's, the system's, or what the client of a store raises
        raise UserError(
            f"{shard} cannot be read as a .tar ({error}); is it whole, and not compressed?"
        ) from None
    return found


def _check_end(file: IO[bytes], end: int, shard: str) -> None:
    """tarfile takes a torn or foreign header for the end; a whole archive ends in empty blocks alone."""
    file.seek(end)
    tail = file.read(_BLOCK)
    whole = len(tail) >= tarfile.BLOCKSIZE
    while whole and tail:
        whole = not tail.strip(b"\0")
        tail = file.read(_BLOCK)
    if not whole:
        raise UserError(
            f"{shard}: is cut short or damaged at byte {end}; fetch it again, or leave it out of the pattern"
        )
