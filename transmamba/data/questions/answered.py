"""Questions of any reader with the answers that a model wrote to them, for its student to learn: distillation
by sequences (Kim and Rush, arXiv 1606.07947)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from ...config.load import Part
from ...config.registry import QUESTIONS
from ...errors import UserError
from ..staged import Rationale
from ..text.appended import about_of, read_about
from ..text.files import table_rows
from .source import Item, QuestionSource


@QUESTIONS.register("answered")
@dataclass(frozen=True, kw_only=True)
class AnsweredQuestions:
    """Training questions of another reader with what `transmamba generate-data --questions` wrote to them in
    place of their own answers and reasons; those that were not answered are left out. The test split is the
    reader's own.

    data:    the reader, with the options that were given when they were answered
    answers: the file that was written
    """

    data: Annotated[Any, Part(QUESTIONS)]
    answers: str

    def build(self, split: str) -> QuestionSource:
        """Raises UserError for a file that is missing, unfinished or of other questions."""
        source: QuestionSource = self.data.build(split)
        if split != "train":
            return source
        path = Path(self.answers).expanduser()
        about = read_about(path)
        if not path.is_file():
            begun = "is not whole yet; run generate-data again" if about else "is not there"
            raise UserError(f"answers: {str(path)!r} {begun}")
        if about is None:
            raise UserError(
                f"answers: nothing beside {str(path)!r} says what it is of ({about_of(path).name}); write it "
                "by transmamba generate-data --questions"
            )
        if about["made"].get("of") != len(source):
            raise UserError(
                f"answers: {str(path)!r} is of {about['made'].get('of')} questions, the reader has "
                f"{len(source)}; give it the options that it had then"
            )
        if not about["counts"].get("texts"):
            raise UserError(
                f"answers: {str(path)!r} holds none; none of the model's answers had an end and words"
            )
        rows = {}
        for where, row in table_rows(str(path), ("index", "question", "answer")):
            _check(row, len(source), where)
            rows[row["index"]] = row
        made = Answered(source, np.array(sorted(rows), dtype=np.int64), rows, str(path))
        made.item(0)
        return made


def _check(row: Mapping[str, Any], count: int, where: str) -> None:
    """Raises UserError for a row that generate-data has not written."""
    number, reasons = row.get("index"), row.get("rationale")
    texts = [row.get("question"), row.get("answer")]
    if isinstance(reasons, dict):
        texts += reasons.values()
        known = "reasoning" in reasons and reasons.keys() <= Rationale.__dataclass_fields__.keys()
    else:
        known = reasons is None
    counted = type(number) is int and 0 <= number < count
    if not counted or not known or not all(isinstance(text, str) for text in texts):
        raise UserError(
            f"answers: {where}: is no answer to one of {count} questions; write the file anew by transmamba "
            "generate-data --questions"
        )


@dataclass(frozen=True)
class Answered:
    """index: (N,) numbers in `source` of the items that are there; rows: by that number; path: of the file"""

    source: QuestionSource
    index: npt.NDArray[np.int64]
    rows: Mapping[int, Mapping[str, Any]]
    path: str

    @property
    def skipped(self) -> int:
        return self.source.skipped + len(self.source) - len(self.index)

    @property
    def drawn(self) -> bool:
        return bool(getattr(self.source, "drawn", False))

    def __len__(self) -> int:
        return len(self.index)

    def item(self, index: int) -> Item:
        """Raises UserError where the file's question is another."""
        number = int(self.index[index])
        item, row = self.source.item(number), self.rows[number]
        if row["question"] != item.question:
            raise UserError(
                f"answers: {self.path!r} answers question {number}, {row['question'][:60]!r}, but the reader "
                f"has {item.question[:60]!r}; give it the options that it had then"
            )
        reasons = row.get("rationale")
        rationale = Rationale(**reasons) if isinstance(reasons, dict) else None
        return replace(item, answers=(str(row["answer"]),), rationale=rationale)
