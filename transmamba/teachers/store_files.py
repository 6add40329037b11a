"""The files of a store: rows of numbers by view and item, in shards that are either whole or not there.

FOLDER/store.json says what the rows are of. Shard i is NAME-i.npy for every array, and shard-i.json with
their sizes and checksums, written last: what a killed process left without it is written again.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UserError

Indices = npt.NDArray[np.int64]
Rows = Mapping[str, npt.NDArray[Any]]

STORE_FILE = "store.json"
_FORMAT = 1
_PARTIAL = ".partial"
# files that are mapped at once: each takes a descriptor, of which a process has 1,024 by default
_MOST_SHARDS = 256
_BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What store.json holds.

    identity:     what the rows depend on, as JSON can hold it: a store of another identity is stale
    source:       what the user calls the teacher
    num_items, views: there is a row for each item of each view
    dtype:        of the numbers, `float16` or `float32`
    arrays:       the shape of a row of each array: `logits` (K,), an embedding (E,), hidden tokens (L, D)
    shard_rows:   rows of a shard; the last may have fewer
    """

    identity: Mapping[str, Any]
    source: str
    num_items: int
    views: int
    dtype: str
    arrays: Mapping[str, tuple[int, ...]]
    shard_rows: int
    format: int = _FORMAT

    @property
    def rows(self) -> int:
        return self.num_items * self.views

    @property
    def bytes(self) -> int:
        """Of all rows together."""
        numbers = sum(math.prod(shape) for shape in self.arrays.values())
        return self.rows * numbers * np.dtype(self.dtype).itemsize


@dataclass
class Store:
    """A folder of shards. Reading maps files when they are first asked for; picklable, for data workers."""

    folder: Path
    contents: Contents
    _maps: dict[tuple[str, int], npt.NDArray[Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def create(cls, folder: Path, contents: Contents) -> Store:
        """An empty one. Raises UserError where the folder cannot be written, or its disk is too small."""
        rows = max(contents.shard_rows, -(-contents.rows // _MOST_SHARDS))
        contents = Contents(**{**vars(contents), "shard_rows": rows})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free < contents.bytes:
                raise UserError(
                    f"store {str(folder)!r} takes {_size(contents.bytes)}, its disk has {_size(free)} left; "
                    "write another folder, fewer views, or dtype: float16"
                )
            _write_json(folder / STORE_FILE, asdict(contents))
        except OSError as error:
            raise UserError(f"store {str(folder)!r} cannot be written: {error.strerror}") from error
        return cls(folder, contents)

    @classmethod
    def open(cls, folder: Path) -> Store | None:
        """The one that lies there; None where none was begun. Raises UserError for a damaged one."""
        path = folder / STORE_FILE
        try:
            values = json.loads(path.read_text())
            if values["format"] != _FORMAT:
                raise UserError(
                    f"{path} is of format {values['format']}, this transmamba reads {_FORMAT}; "
                    "remove the folder to have the store written again"
                )
            values["arrays"] = {name: tuple(shape) for name, shape in values["arrays"].items()}
            return cls(folder, Contents(**values))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{path} cannot be read ({error}); remove the folder to have the store written again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": {}}

    @property
    def num_shards(self) -> int:
        return -(-self.contents.rows // self.contents.shard_rows)

    def shard_of(self, shard: int) -> range:
        """Numbers of its rows: view * num_items + position."""
        start = shard * self.contents.shard_rows
        return range(start, min(start + self.contents.shard_rows, self.contents.rows))

    def missing(self) -> list[int]:
        """Shards that are not whole yet."""
        return [shard for shard in range(self.num_shards) if not self._manifest(shard).is_file()]

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for leftover in self.folder.glob(f"*{_PARTIAL}"):
            leftover.unlink(missing_ok=True)

    def check(self, shard: int) -> None:
        """Raises UserError where a shard's file is missing, or not what was written."""
        manifest = self._manifest(shard)
        again = f"remove {manifest} to have the shard written again"
        try:
            wanted = json.loads(manifest.read_text())
            named = {name: wanted[name] for name in self.contents.arrays}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{manifest} cannot be read ({error}); {again}") from error
        for name, written in named.items():
            path = self._path(name, shard)
            size = path.stat().st_size if path.is_file() else None
            if size != written["bytes"]:
                is_now = "is missing" if size is None else f"has {size} bytes, not {written['bytes']}"
                raise UserError(f"{path} {is_now}; {again}")
            if _checksum(path) != written["crc32"]:
                raise UserError(f"{path} is not what was written: its checksum differs; {again}")

    def write(self, shard: int, chunks: Iterable[Rows]) -> None:
        """All rows of a shard, a few at a time. Raises UserError where the disk is full."""
        count = len(self.shard_of(shard))
        try:
            with contextlib.ExitStack() as opened:
                files = {
                    name: opened.enter_context(_growing(self._path(name, shard)))
                    for name in self.contents.arrays
                }
                for name, file in files.items():
                    file.begin(np.dtype(self.contents.dtype), (count, *self.contents.arrays[name]))
                for rows in chunks:
                    for name, file in files.items():
                        file.add(np.ascontiguousarray(rows[name]).data)
                written = {name: file.finish() for name, file in files.items()}
            _write_json(self._manifest(shard), written)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"store {str(self.folder)!r}: no space left to write shard {shard}; those before it are "
                "whole. Free some space, and start the same command again"
            ) from error

    def read(self, view: Indices, position: Indices) -> dict[str, Tensor]:
        """By array, the rows (B, ...) of items (B,) in views (B,)."""
        shard, place = np.divmod(view * self.contents.num_items + position, self.contents.shard_rows)
        found = {}
        for name, shape in self.contents.arrays.items():
            rows = np.empty((len(shard), *shape), dtype=self.contents.dtype)
            for each in np.unique(shard):
                here = shard == each
                rows[here] = self._map(name, int(each))[place[here]]
            found[name] = torch.from_numpy(rows)
        return found

    def _map(self, name: str, shard: int) -> npt.NDArray[Any]:
        if (name, shard) not in self._maps:
            self._maps[name, shard] = np.load(self._path(name, shard), mmap_mode="r")
        return self._maps[name, shard]

    def _path(self, name: str, shard: int) -> Path:
        return self.folder / f"{name}-{shard:05d}.npy"

    def _manifest(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.json"


@dataclass
class _Growing:
    """A .npy file that gets its rows one after the other."""

    file: BinaryIO
    size: int = 0
    crc: int = 0

    def begin(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, described)
        self.add(header.getbuffer())

    def add(self, data: memoryview) -> None:
        self.file.write(data)
        self.size += data.nbytes
        self.crc = zlib.crc32(data, self.crc)

    def finish(self) -> dict[str, int]:
        """Onto the disk; its size and checksum."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return {"bytes": self.size, "crc32": self.crc}


@contextlib.contextmanager
def _growing(path: Path) -> Iterator[_Growing]:
    """Under a temporary name until it is whole; gone where it never is."""
    partial = path.with_name(f"{path.name}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield _Growing(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(path: Path, values: Any) -> None:
    partial = path.with_name(f"{path.name}{_PARTIAL}")
    with partial.open("w") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
