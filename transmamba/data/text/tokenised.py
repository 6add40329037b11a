"""Texts as numbers, in flat files that are mapped into memory: written once, read by every later run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TOKENS, ANSWERS, BOUNDS, ABOUT = "tokens.bin", "answers.bin", "bounds.bin", "about.json"

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class About:
    """What a folder of them holds.

    tokens, documents: how many of them
    dtype:    of a token, uint16 or uint32
    answered: whether it says which tokens are answers
    left_out: what was not taken: (reason, where the first of them is, how many)
    """

    tokens: int
    documents: int
    dtype: str
    answered: bool
    left_out: list[tuple[str, str, int]]

    def sizes(self) -> dict[str, int]:
        """The files and their sizes in bytes."""
        found = {TOKENS: self.tokens * np.dtype(self.dtype).itemsize, BOUNDS: (self.documents + 1) * 8}
        return {**found, ANSWERS: self.tokens} if self.answered else found


class Tokenised:
    """N documents of M tokens in all, each with what begins and ends it. Picklable: another process maps the
    files for itself.

    folder: holds the files
    """

    def __init__(self, folder: Path, about: About) -> None:
        self.folder, self.about = folder, about
        self._mapped: dict[str, Numbers] = {}

    @classmethod
    def open(cls, folder: Path) -> Tokenised | None:
        """None where there is none, or a torn one."""
        try:
            about = About(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
            whole = all((folder / name).stat().st_size == size for name, size in about.sizes().items())
        except (OSError, ValueError, TypeError):
            return None
        return cls(folder, about) if whole else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}

    def __len__(self) -> int:
        return self.about.documents

    @property
    def tokens(self) -> Numbers:
        """(M,) uint16 or uint32"""
        return self._map(TOKENS, self.about.dtype)

    @property
    def bounds(self) -> Numbers:
        """(N + 1,) int64, where each document begins, and the end"""
        return self._map(BOUNDS, "int64")

    @property
    def answers(self) -> Numbers | None:
        """(M,) bool, the tokens that answers are made of; None where there are no answers"""
        return self._map(ANSWERS, "bool") if self.about.answered else None

    def _map(self, name: str, dtype: str) -> Numbers:
        if name not in self._mapped:
            path = self.folder / name
            empty = path.stat().st_size == 0
            # a plain array that looks into the map: slices of np.memmap cost several times as much
            made = np.zeros(0, dtype) if empty else np.asarray(np.memmap(path, dtype=dtype, mode="r"))
            self._mapped[name] = made
        return self._mapped[name]


class Writing:
    """Such a folder while it is written, document after document."""

    def __init__(self, folder: Path, vocabulary: int, answered: bool) -> None:
        """Raises OSError."""
        self.folder, self.answered = folder, answered
        self.dtype = "uint16" if vocabulary <= 2**16 else "uint32"
        self.bounds = [0]
        self._files = {name: (folder / name).open("wb") for name in (TOKENS, *([ANSWERS] * answered))}

    def add(self, ids: list[int], asked: list[bool] | None) -> None:
        self._files[TOKENS].write(np.array(ids, dtype=self.dtype).tobytes())
        if self.answered:
            assert asked is not None, "a conversation says which"
            self._files[ANSWERS].write(np.array(asked, dtype=np.bool_).tobytes())
        self.bounds.append(self.bounds[-1] + len(ids))

    def finish(self, left_out: list[tuple[str, str, int]]) -> None:
        """All is on the disk afterwards, the file that says so last."""
        about = About(self.bounds[-1], len(self.bounds) - 1, self.dtype, self.answered, left_out)
        with (self.folder / BOUNDS).open("wb") as file:
            file.write(np.array(self.bounds, dtype=np.int64).tobytes())
            self._files[BOUNDS] = file
            for each in self._files.values():
                each.flush()
                os.fsync(each.fileno())
        self.close()
        (self.folder / ABOUT).write_text(json.dumps(vars(about)), encoding="utf-8")

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def chunks(items: Iterator[Any], size: Any, most: int) -> Iterator[list[Any]]:
    """Items in lists of at most `most` by their `size`, or of one that is larger."""
    found: list[Any] = []
    total = 0
    for item in items:
        if found and total + size(item) > most:
            yield found
            found, total = [], 0
        found.append(item)
        total += size(item)
    if found:
        yield found
