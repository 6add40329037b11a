"""Conversations about pictures in LLaVA's format: Liu et al., "Visual instruction tuning", NeurIPS 2023."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...config.registry import QUESTIONS
from ...core.text import Message
from ...errors import UserError
from ..text.files import found_files, table_rows
from ..text.source import written
from .source import QuestionSource, need_a_split, of_split
from .stored import UNANSWERED, Gathered, picture_names, pictures_of

KINDS = (".json", ".jsonl", ".ndjson")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
Turns = tuple[Message, ...]


@QUESTIONS.register("llava")
@dataclass(frozen=True, kw_only=True)
class LlavaInstruct:
    """LLaVA-instruct: a list of `{"id", "image", "conversations": [{"from": "human", "value":
    "<image>\\n..."}, {"from": "gpt", "value": ...}]}` (.json, or a line each in .jsonl, also compressed).

    A conversation of several turns is one item: the last question and its answer, behind the turns before it
    in order. `image` may be a list, or left out where a conversation is of text alone. Left out, counted and
    logged: conversations that end without an answer, with another number of `<image>` than of pictures, and
    whose picture is not there.

    train, test: a file, or a pattern of several; one may be left out
    images:      the folder or .zip of the pictures; where the first file lies, if left out
    """

    train: str | None = None
    test: str | None = None
    images: str | None = None

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "llava")

    def build(self, split: str) -> QuestionSource:
        """Raises UserError on a file that is missing or damaged, or when no conversation is left."""
        files = found_files([of_split(split, self.train, self.test, "llava")], KINDS)
        gathered = Gathered(files[0])
        for line, pictures, turns in conversations(files, gathered):
            gathered.add(line, turns[-2].content, turns[-1].content, pictures, earlier=turns[:-2])
        return gathered.build(pictures_of(self.images, files))


def conversations(files: tuple[str, ...], gathered: Gathered) -> Iterator[tuple[str, tuple[str, ...], Turns]]:
    """(where it stands, its pictures, its turns) of each, up to its last answer; one without a question and
    an answer is left out. Raises UserError for what is no conversation."""
    for path in files:
        for where, row in table_rows(path, ("conversations",)):
            line = where.removeprefix(f"{files[0]}: ")
            turns = _turns(row.get("conversations"), where)
            while turns and turns[-1].role != "assistant":
                turns = turns[:-1]
            if len(turns) < 2 or turns[-2].role != "user" or not turns[-1].content.strip():
                gathered.left_out.add(UNANSWERED, line)
                continue
            yield line, picture_names(row.get("image", row.get("images")), f"{where}: image"), turns


def _turns(cell: Any, where: str) -> Turns:
    if not isinstance(cell, list):
        raise UserError(f"{where}: conversations is {cell!r:.60}; expected a list of turns")
    return tuple(_turn(item, f"{where}: turn {number}") for number, item in enumerate(cell))


def _turn(item: Any, where: str) -> Message:
    said = item.get("from") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(said, str) or said not in ROLES:
        raise UserError(f"{where}: {item!r:.60} is no turn; expected from ({', '.join(ROLES)}) and value")
    return Message(ROLES[said], written(item.get("value"), where).strip())
