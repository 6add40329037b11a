"""Pictures in a folder or in a .zip, each with captions that a file gives: what most readers build."""

from __future__ import annotations

import errno
import lzma
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import UserError
from ..images.decoding import decode_upright, in_threads
from .captions import EMPTY, Captions, LeftOut

UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


class Place(Protocol):
    """Where pictures lie, each under its name."""

    def has(self, name: str) -> bool:
        """Raises UserError naming it when that cannot be told, which is not to say that it is absent."""

    def image(self, name: str) -> Image.Image:
        """Raises UserError naming it when it cannot be read or does not decode."""


@dataclass(frozen=True)
class Folder:
    """A folder; names are paths from there."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def has(self, name: str) -> bool:
        path = self.root / name
        try:
            return path.is_file()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # no file can have it, such as a picture written as text
                return False
            raise UserError(f"{path} cannot be looked up ({error}); mend the folder's place") from None

    def image(self, name: str) -> Image.Image:
        path = self.root / name
        return decode_upright(path, str(path))


class Archive:
    """A .zip; names are paths from the folder `inside` it. Raises UserError when it is none."""

    def __init__(self, path: Path, inside: str = "") -> None:
        self.path, self.inside = path, f"{inside}/" if inside else ""
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        try:
            self.names = frozenset(self.opened().namelist())
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read ({error}); expected a .zip") from None

    def __str__(self) -> str:
        return f"{self.path}/{self.inside}".rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def opened(self) -> zipfile.ZipFile:
        """Opened by each process for itself: a forked one would move its parent's place in the file."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
        return self._opened[1]

    def has(self, name: str) -> bool:
        return self.inside + name in self.names

    def image(self, name: str) -> Image.Image:
        where = f"{self}/{name}"
        try:
            content = self.opened().read(self.inside + name)
        except (*UNREADABLE, KeyError) as error:
            raise UserError(f"{where} cannot be read ({error})") from None
        return decode_upright(content, where)


@dataclass(frozen=True)
class StoredPairs:
    """Encoded pictures, decoded when asked for, with captions in memory. A `PairSource`.

    names: (N,) bytes, in `place`; an array, because a list of a million strings is copied by every worker as
           soon as its reference counts change
    texts: none where there are pictures alone
    """

    place: Place
    names: npt.NDArray[np.bytes_]
    texts: Captions | None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return os.fsdecode(bytes(self.names[index]))

    def image(self, index: int) -> Image.Image:
        return self.place.image(self.name(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self.texts.of(index) if self.texts is not None else ()

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None


class Gathered:
    """Pairs as they stand in the file `where`, in its order; those of one picture are brought together.

    what: in words, what has the captions: a picture, a video
    """

    def __init__(self, where: str, what: str = "picture") -> None:
        self.where, self.what = where, what
        self.left_out = LeftOut()
        self._captions: dict[str, list[str]] = {}

    def add(self, picture: str, captions: tuple[str, ...], line: str) -> None:
        """One pair, or several of one picture. line: where it stands, for what is said of it."""
        if not picture:
            self.left_out.add(f"without the name of a {self.what}", line)
        elif not captions:
            self.left_out.add(EMPTY, line)
        else:
            self._captions.setdefault(picture, []).extend(captions)

    def build(self, place: Place) -> StoredPairs:
        """Logs what is left out. Raises UserError when no pair is left, or none of the pictures is in
        `place`."""
        names = list(self._captions)
        there = looked_up(names, place, self.where, self.what)
        for name, found in zip(names, there, strict=True):
            if not found:
                captions = self._captions.pop(name)
                self.left_out.add(f"whose {self.what} is not there", f"{place}/{name}", len(captions))
        if not self._captions:
            raise self.left_out.nothing(self.where)
        self.left_out.log(self.where)
        kept = np.array([os.fsencode(name) for name in self._captions], dtype=np.bytes_)
        return StoredPairs(place, kept, Captions.pack(self._captions.values()), self.left_out.total)


def looked_up(names: Sequence[str], place: Place, where: str, what: str) -> list[bool]:
    """Whether each is in `place`. Raises UserError when there are names, and none of them is.

    where: the file that names them; what: in words, what they are of
    """
    there = list(in_threads(range(len(names)), lambda n: place.has(names[n]), f"looking up {what}s"))
    if names and not any(there):
        raise UserError(
            f"{where}: none of its {len(names)} {what}s is in {place} "
            f"(first: {names[0]}){_advice(names[0], what)}"
        )
    return there


def _advice(name: str, what: str) -> str:
    if "://" in name:
        return f"; these are addresses: download the {what}s and write their paths"
    return f"; do captions and {what}s belong together?"
