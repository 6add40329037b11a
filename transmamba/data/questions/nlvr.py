"""NLVR: statements that people wrote about drawn pictures, true or false. Suhr et al., "A corpus of natural
language for visual reasoning", ACL 2017."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.registry import QUESTIONS
from ...errors import UserError
from ..images.source import existing
from ..pairs.rows import rows
from ..pairs.stored import UNREADABLE, Archive, Folder, Place
from ..text.files import unpacked
from .source import QuestionSource, need_a_split, of_split
from .stored import Gathered

EXPECTED = "NLVR's dev.json with images/ beside it, or a .zip of index.json and the pictures"
PERMUTATIONS = 6
CHOICES = ("true", "false")
Statement = tuple[str, Mapping[str, Any], list[str]]  # where it stands, the record, its pictures


@QUESTIONS.register("nlvr")
@dataclass(frozen=True, kw_only=True)
class Nlvr:
    """NLVR: a line of `{"sentence", "label", "identifier", "directory"}` a statement (dev.json, perhaps
    compressed), pictures called images/DIRECTORY/dev-IDENTIFIER-0.png to -5.png beside it: the same three
    boxes in six orders. Or a .zip with an index.json, a list of the same with `images`, the pictures' names.

    An item is a statement, its answer true or false. Left out, counted and logged: statements without a
    label, and those whose picture is not there.

    train, test:  the files; one may be left out
    permutations: of how many of its six pictures each statement is asked; they are no independent items
    """

    train: str | None = None
    test: str | None = None
    permutations: int = 1

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "nlvr")
        if not 1 <= self.permutations <= PERMUTATIONS:
            raise UserError(f"permutations {self.permutations}: write 1 to {PERMUTATIONS}")

    def build(self, split: str) -> QuestionSource:
        """Raises UserError on a file that is missing or of another kind, or when no statement is left."""
        path = existing(of_split(split, self.train, self.test, "nlvr"), EXPECTED)
        place: Place
        if path.suffix.lower() == ".zip":
            place, statements = Archive(path), _index(path)
        else:
            place, statements = Folder(path.parent / "images"), _lines(path)
        gathered = Gathered(str(path))
        for line, record, names in statements:
            label = str(record.get("label")).lower()
            answer = label if label in CHOICES else None
            for name in names[: self.permutations]:
                gathered.add(line, record.get("sentence"), answer, (name,), type="statement")
        return gathered.build(place)


def _lines(path: Path) -> Iterator[Statement]:
    """As its authors publish them: lines of JSON, whatever the suffix."""
    split = path.name.split(".")[0]
    columns = ("sentence", "identifier", "directory")
    with unpacked(str(path)) as file:
        for line, row in rows(file, ".jsonl", columns, str(path)):
            stem = f"{row.get('directory')}/{split}-{row.get('identifier')}"
            yield line, row, [f"{stem}-{number}.png" for number in range(PERMUTATIONS)]


def _index(path: Path) -> Iterator[Statement]:
    try:
        found = json.loads(Archive(path).opened().read("index.json"))
    except (*UNREADABLE, KeyError, ValueError) as error:
        raise UserError(f"{path}: index.json cannot be read ({error}); expected {EXPECTED}") from None
    for number, record in enumerate(found if isinstance(found, list) else [found]):
        names = record.get("images") if isinstance(record, Mapping) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{path}: record {number} of index.json has no list 'images'; expected {EXPECTED}"
            )
        yield f"record {number}", record, names
