"""Questions of one's own: a line of JSON each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...config.registry import QUESTIONS
from ...errors import UserError
from ..pairs.captions import texts
from ..staged import Rationale, read_stages
from ..text.files import found_files, table_rows
from .source import QuestionSource, need_a_split, of_split
from .stored import Gathered, picture_names, pictures_of

KINDS = (".jsonl", ".ndjson", ".json")
_STAGES = ("summary", "caption", "reasoning")
_READ = ("question", "answers", "answer", "image", "choices", "type", "rationale")

logger = logging.getLogger("transmamba.data")


@QUESTIONS.register("jsonl")
@dataclass(frozen=True, kw_only=True)
class QuestionLines:
    """Questions of one's own, an object of JSON each. Rows (.jsonl, or .json with a list, also compressed)
    have `question`, `answers` (or `answer`; a text, a number or a list) and, where there are any, `image` (a
    path or a list of paths), `choices`, `type` and `rationale` (a text, perhaps in LLaVA-CoT's stages, or an
    object with summary, caption and reasoning).

    Ten answers are those of ten people, fewer are all right. A question may say by `<image>` where each
    picture stands. Left out, counted and logged: rows without a question or an answer, whose answer is none
    of their choices, and whose picture is not there. Other keys
    are not read, and named in a line.

    train, test: a file, or a pattern of several; one may be left out
    images:      the folder or .zip of the pictures; where the first file lies, if left out
    """

    train: str | None = None
    test: str | None = None
    images: str | None = None

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "jsonl")

    def build(self, split: str) -> QuestionSource:
        """Raises UserError on a file that is missing or damaged, or when no question is left."""
        files = found_files([of_split(split, self.train, self.test, "jsonl")], KINDS)
        gathered, unread = Gathered(files[0]), dict[str, None]()
        for path in files:
            for where, row in table_rows(path, ("question",)):
                _add(gathered, where.removeprefix(f"{files[0]}: "), row)
                unread |= dict.fromkeys(name for name in row if name not in _READ)
        if unread:
            names, read = ", ".join(unread), ", ".join(_READ)
            logger.warning("%s: not read of its rows: %s; what is read is %s", files[0], names, read)
        return gathered.build(pictures_of(self.images, files))


def _add(gathered: Gathered, line: str, row: Mapping[str, Any]) -> None:
    where = f"{gathered.where}: {line}"
    gathered.add(
        line,
        row.get("question"),
        row.get("answers", row.get("answer")),
        picture_names(row.get("image"), f"{where}: image"),
        choices=row.get("choices") or (),
        type=" ".join(texts(row.get("type"), f"{where}: type")),
        rationale=_rationale(row.get("rationale"), f"{where}: rationale"),
    )


def _rationale(cell: Any, where: str) -> Rationale | None:
    """Raises UserError for what is neither text nor an object of stages."""
    if cell is None or cell == "":
        return None
    if isinstance(cell, str):
        found = read_stages(cell)
        return Rationale(reasoning=cell.strip()) if found is None else found[0]
    if not isinstance(cell, Mapping) or not set(cell) <= set(_STAGES):
        raise UserError(f"{where}: {cell!r:.60} is no rationale; write a text, or {', '.join(_STAGES)}")
    return Rationale(**{name: " ".join(texts(cell.get(name), where)) for name in _STAGES})
