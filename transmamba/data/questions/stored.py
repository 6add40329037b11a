"""Questions in files, with pictures in a folder or a .zip: what most readers build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.text import Message
from ...errors import UserError
from ..images.source import existing
from ..pairs.captions import Captions, LeftOut, texts
from ..pairs.stored import Archive, Folder, Place, looked_up
from ..pairs.table import names_in
from ..staged import Rationale
from .source import MARK, Item

UNASKED = "without a question"
UNANSWERED = "without an answer"
UNCHOSEN = "whose answer is none of their choices"
MISMARKED = f"with another number of {MARK} than of pictures"
GONE = "whose picture is not there"


@dataclass(frozen=True)
class StoredPicture:
    """A `Picture` under its name in a folder or a .zip."""

    place: Place
    name: str

    def image(self) -> Image.Image:
        return self.place.image(self.name)


@dataclass(frozen=True)
class StoredQuestions:
    """Items whose pictures are decoded when asked for. A `QuestionSource`.

    place:   where the pictures are; None where no item has any
    records: each item as JSON, one text a row: lists of strings would be copied by every data worker as soon
             as their reference counts change
    """

    place: Place | None
    records: Captions
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int) -> Item:
        (record,) = self.records.of(index)
        question, answers, choices, kind, reasons, earlier, names = json.loads(record)
        pictures = []
        for name in names:
            assert self.place is not None
            pictures.append(StoredPicture(self.place, name))
        return Item(
            question=question,
            answers=tuple(answers),
            choices=tuple(choices),
            type=kind,
            rationale=None if reasons is None else Rationale(**reasons),
            earlier=tuple(Message(*turn) for turn in earlier),
            pictures=tuple(pictures),
        )


def place_of(path: str, expected: str) -> Place:
    """A folder of pictures, or a .zip with them. Raises UserError, saying what is expected, for neither."""
    found = existing(path, expected)
    return Archive(found) if found.suffix.lower() == ".zip" else Folder(found)


def pictures_of(images: str | None, files: Sequence[str]) -> Place:
    """Where the pictures that `files` name are: in `images`, a folder or .zip, or beside the first file."""
    root = images if images is not None else str(Path(files[0]).parent)
    return place_of(root, "the folder or .zip of the pictures")


def picture_names(cell: Any, where: str) -> tuple[str, ...]:
    """The paths in a cell: one, a list of them, or none. Raises UserError for anything else."""
    return tuple(filter(None, names_in(cell, where)))


class Gathered:
    """Questions as they stand in the file `where`, in its order; those that cannot be asked are left out."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.left_out = LeftOut("questions")
        self._items: list[tuple[str, tuple[str, ...], str]] = []  # record, names of pictures, where it stands

    def add(
        self,
        line: str,
        question: Any,
        answers: Any,
        pictures: Sequence[str] = (),
        *,
        choices: Any = (),
        type: str = "",
        rationale: Rationale | None = None,
        earlier: Sequence[Message] = (),
    ) -> None:
        """One question; a cell holds a text, a list of texts or nothing. line: where it stands, for what is
        said of it. Raises UserError for a cell that holds something else."""
        where = f"{self.where}: {line}"
        asked = "\n".join(texts(question, f"{where}: question", "text"))
        right, offered = _answers(answers, f"{where}: answers"), _answers(choices, f"{where}: choices")
        marks = asked.count(MARK) + sum(message.content.count(MARK) for message in earlier)
        asked, earlier = _unmarked(asked, earlier)
        if not asked.replace(MARK, "").strip():
            self.left_out.add(UNASKED, line)
        elif not right:
            self.left_out.add(UNANSWERED, line)
        elif offered and not set(right) <= set(offered):
            self.left_out.add(UNCHOSEN, line)
        elif marks not in (0, len(pictures)):
            self.left_out.add(MISMARKED, line)
        else:
            reasons = None if rationale is None else vars(rationale)
            turns = [(message.role, message.content) for message in earlier]
            record = [asked, right, offered, type, reasons, turns, list(pictures)]
            self._items.append((json.dumps(record, ensure_ascii=False), tuple(pictures), line))

    def build(self, place: Place | None) -> StoredQuestions:
        """Logs what is left out. Raises UserError when no question is left, or none of the pictures is in
        `place`, where all of them are if that is None."""
        if place is not None:
            names = list(dict.fromkeys(name for _, pictures, _ in self._items for name in pictures))
            there = dict(zip(names, looked_up(names, place, self.where, "picture"), strict=True))
            for _, pictures, _ in self._items:
                missing = [name for name in pictures if not there[name]]
                if missing:
                    self.left_out.add(GONE, f"{place}/{missing[0]}")
            self._items = [item for item in self._items if all(there[name] for name in item[1])]
        if not self._items:
            raise self.left_out.nothing(self.where)
        self.left_out.log(self.where)
        packed = Captions.pack([record] for record, _, _ in self._items)
        return StoredQuestions(place, packed, self.left_out.total)


def _answers(cell: Any, where: str) -> tuple[str, ...]:
    """The answers in a cell: texts and numbers. One that is empty keeps its place among others: of ten people
    one may have said nothing."""
    found = []
    for value in cell if isinstance(cell, list | tuple) else [cell]:
        if isinstance(value, bool):
            raise UserError(f"{where}: {value} is no answer; write a text, such as yes or true")
        text = str(value) if isinstance(value, int | float) else value
        found.append(" ".join(texts(text, where, "answer")))
    return tuple(found) if any(found) else ()


def _unmarked(asked: str, earlier: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Without marks that say no more than that pictures come first: those before the first words of the user,
    and a single one behind them, which LLaVA's own training moves there."""
    spoken = [number for number, message in enumerate(earlier) if message.role == "user"]
    first = earlier[spoken[0]].content if spoken else asked
    left = first.strip()
    while left.startswith(MARK):
        left = left.removeprefix(MARK).lstrip()
    if first.count(MARK) == 1:
        left = left.removesuffix(MARK).rstrip()
    if MARK in left or (spoken and MARK in asked) or any(MARK in earlier[n].content for n in spoken[1:]):
        return asked, earlier
    if not spoken:
        return left, earlier
    turns = list(earlier)
    turns[spoken[0]] = Message("user", left)
    return asked, turns
