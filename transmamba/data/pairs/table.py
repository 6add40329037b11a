"""Pairs that a table names: a csv, tsv, jsonl, json or parquet file, perhaps in a .zip with its pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ...config.registry import PAIRS
from ...errors import UserError
from ..images.source import existing
from .captions import texts
from .files import opened
from .rows import KINDS, rows
from .source import PairSource, need_a_split, of_split
from .stored import UNREADABLE, Archive, Folder, Gathered, Place

LAYOUT = f"a file of pairs ({', '.join(KINDS)}), or a .zip with one and its pictures"


@dataclass(frozen=True)
class FoundTable:
    """A table: its name, where its pictures are, and the archive that holds both, if one does."""

    file: Path | str
    pictures: Place
    archive: Archive | None = None

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.file).suffix.lower()

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        if self.archive is None:
            with opened(str(self.file)) as file:
                yield file
            return
        try:
            with self.archive.opened().open(str(self.file)) as file:
                yield file
        except UNREADABLE as error:
            raise UserError(f"{self.archive}: {self.file} cannot be read ({error})") from None


@PAIRS.register("table")
@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with the path and the captions of a picture in each row, one file a split.

    A file is .csv or .tsv with a line of names, .jsonl, .json (a list of objects), .parquet, or a .zip that
    holds one of these and the pictures. Rows with the same picture are brought together. Left out, counted
    and logged: rows without a caption, and those whose picture is not there.

    train, test: the files; one may be left out
    image:       the column with the picture's path from `root`, or with a list of several pictures' paths
    caption:     the column with the caption, or with a list of them; or several such columns
    root:        the folder of the pictures; where the file lies, if left out
    """

    train: str | None = None
    test: str | None = None
    image: str = "image"
    caption: str | tuple[str, ...] = "caption"
    root: str | None = None

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "table")
        if not self.caption:
            raise UserError("caption: names no column; write the name of one, or a list of names")

    def build(self, split: str) -> PairSource:
        """Raises UserError on a file or column that is missing, a damaged line, or when no pair is left."""
        path = existing(of_split(split, self.train, self.test, "table"), LAYOUT)
        found = find_table(path, self.root)
        where = f"{path}/{found.file}" if found.archive is not None else str(path)
        gathered = Gathered(where)
        with found.open() as file:
            gather(gathered, file, found.suffix, self.image, self.caption)
        return gathered.build(found.pictures)

    @staticmethod
    def recognise(path: Path) -> Table | None:
        """Of a file of one of the kinds, which is then both splits: what is measured or looked at is one."""
        known = path.is_file() and path.suffix.lower() in (*KINDS, ".zip")
        return Table(train=str(path), test=str(path)) if known else None


def find_table(path: Path, root: str | None = None) -> FoundTable:
    """The table that a file is or holds. Raises UserError for a .zip that holds none, or several.

    root: the folder of the pictures; where the table lies, if left out
    """
    folder = Folder(existing(root, "the folder of the pictures")) if root is not None else None
    if path.suffix.lower() != ".zip":
        return FoundTable(path, folder or Folder(path.parent))
    archive = Archive(path)
    tables = [name for name in sorted(archive.names) if _is_table(name)]
    if len(tables) != 1:
        listed = f"several tables ({', '.join(tables[:5])})" if tables else "no table"
        raise UserError(f"{path}: {listed}; expected one of the kinds {', '.join(KINDS)}")
    inside = os.path.dirname(tables[0])  # noqa: PTH120
    return FoundTable(tables[0], folder or Archive(path, inside), archive)


def gather(
    gathered: Gathered, file: IO[bytes], suffix: str, picture: str, caption: str | tuple[str, ...]
) -> None:
    """Adds the pairs of a table, one of KINDS by its suffix: columns as of `Table`. Raises UserError on a
    column that is missing and on a damaged line."""
    spoken = (caption,) if isinstance(caption, str) else caption
    where = gathered.where
    for line, row in rows(file, suffix, (picture, *spoken), where):
        cells = [(row.get(key), f"{where}: {line}: {key}") for key in (picture, *spoken)]
        captions = tuple(text for cell in cells[1:] for text in texts(*cell))
        for name in names_in(*cells[0]):
            gathered.add(name, captions, line)


def _is_table(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in KINDS and "__MACOSX" not in path.parts and not path.name.startswith(".")


def names_in(value: Any, where: str) -> list[str]:
    """The paths in a cell; an empty one where there is none."""
    if value is None or isinstance(value, str):
        return [(value or "").strip()]
    if isinstance(value, list):
        return [name for item in value for name in names_in(item, where)] or [""]
    if isinstance(value, dict | bytes):
        raise UserError(f"{where} holds pictures, not their paths; such files are read by {{name: datasets}}")
    raise UserError(f"{where}: {value!r:.60} is no path; write text")
