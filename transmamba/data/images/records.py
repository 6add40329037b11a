"""Pictures with a table of what they are, of which one column is a class."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...config.registry import READERS
from ...errors import UserError, suggest
from ..hashing import hash64
from ..pairs.rows import Row, rows
from ..pairs.stored import Archive, Place
from ..pairs.table import LAYOUT, find_table, names_in
from .source import ImageSource, check_split, existing


@READERS.register("records")
@dataclass(frozen=True, kw_only=True)
class Records:
    """Tables as of the pair reader `table` (.csv, .jsonl, .json, .parquet, or a .zip of one and its pictures)
    of which a column says the class: a subject, a group, a muscle.

    There is no test split in them: records are divided by `apart`, so that all pictures of one thing are on
    one side. Of pictures in a .zip that are the same to the byte the first alone is taken.

    files:   a table, or several
    image:   the column with the picture's path, or with a list of several
    label:   the column with the class; of a list its first
    classes: name -> the values of that column that it stands for; others are left out. Null: each value
    apart:   the column whose values are divided, such as a name; null: records
    test:    share of them that is the test split
    seed:    which they are
    """

    files: str | tuple[str, ...]
    image: str = "image"
    label: str = "label"
    classes: dict[str, tuple[str, ...]] | None = None
    apart: str | None = None
    test: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError("files: names none; write the path of a table, or a list of them")
        if not 0 < self.test < 1:
            raise UserError(f"test is {self.test}; write a share of the records, above 0 and below 1")
        values = [value for values in (self.classes or {}).values() for value in values]
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise UserError(f"classes: {twice[0]!r} stands there twice; write it in one class")

    def build(self, split: str) -> ImageSource:
        """Raises UserError for a file or column that is not there, and for a class of fewer than two
        records, or one that nothing belongs to."""
        check_split(split)
        found = _Found(self)
        for path in (self.files,) if isinstance(self.files, str) else self.files:
            found.read(existing(path, LAYOUT))
        return found.source(split == "test")


@dataclass
class _Found:
    config: Records
    pictures: list[tuple[Place, str]] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    held: list[bool] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _count: int = 0

    def read(self, path: Path) -> None:
        config, table = self.config, find_table(path)
        columns = [config.image, config.label, *([] if config.apart is None else [config.apart])]
        with table.open() as file:
            for line, row in rows(file, table.suffix, columns, str(path)):
                self._add(row, table.pictures, f"{path}: {line}")

    def _add(self, row: Row, place: Place, where: str) -> None:
        config, value = self.config, _first(row.get(self.config.label))
        named = self._count if config.apart is None else _number(str(row.get(config.apart)))
        self._count += 1
        if value is not None:
            self._known.add(value)
        if value is None or (config.classes is not None and value not in self._class_of):
            return
        held = bool(hash64(config.seed, named)[0] < np.uint64(int(config.test * 2**64)))
        for name in names_in(row.get(config.image), f"{where}: {config.image}"):
            if not place.has(name):
                raise UserError(f"{where}: {name!r} is not in {place}")
            if self._is_new(place, name):
                self.pictures.append((place, name))
                self.values.append(value)
                self.held.append(held)

    def _is_new(self, place: Place, name: str) -> bool:
        if not isinstance(place, Archive):
            return True
        info = place.opened().getinfo(place.inside + name)
        key = (info.CRC, info.file_size)
        new = key not in self._seen
        self._seen.add(key)
        return new

    @cached_property
    def _class_of(self) -> Mapping[str, str]:
        return {value: name for name, values in (self.config.classes or {}).items() for value in values}

    def source(self, test: bool) -> Pictures:
        names = self._class_of if self.config.classes is not None else {v: v for v in sorted({*self.values})}
        classes = tuple(dict.fromkeys(names.values()))
        for value in names:
            if value not in self._known:
                raise UserError(
                    f"classes: no record has {self.config.label} {value!r}{suggest(value, self._known)}"
                )
        every = np.array([classes.index(names[value]) for value in self.values], dtype=np.int64)
        held = np.array(self.held, dtype=bool)
        for number, name in enumerate(classes):
            mine = held[every == number]
            if mine.all() or not mine.any():
                raise UserError(
                    f"class {name!r}: its {len(mine)} pictures are all in one split; leave it out, or write "
                    "another seed"
                )
        chosen = np.flatnonzero(held == test)
        return Pictures([self.pictures[n] for n in chosen], every[chosen], classes)


@dataclass(frozen=True)
class Pictures:
    """Encoded pictures, decoded when asked for. An `ImageSource`."""

    pictures: list[tuple[Place, str]]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        place, name = self.pictures[index]
        return place.image(name)

    def array(self) -> npt.NDArray[np.uint8] | None:
        return None


def _first(cell: Any) -> str | None:
    """The class in a cell; None where there is none."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    return None if cell is None or str(cell) == "" else str(cell)


def _number(text: str) -> int:
    return zlib.crc32(text.encode())
