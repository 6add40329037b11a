"""Hugging Face `datasets` of texts or of conversations: on the hub, or in a local folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.registry import TEXTS
from ...errors import UserError, suggest
from ..images.hf import check_column, load_splits, own_split
from ..images.source import check_split
from ..pairs.captions import LeftOut
from .source import EMPTY, UNANSWERED, Document, TextSource, asked_and_answered, conversation, written

TEXT_COLUMNS = ("text", "content", "document")
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
_ROWS = 1000  # read at once


@TEXTS.register("datasets")
@dataclass(frozen=True, kw_only=True)
class DatasetTexts:
    """A data set of the `datasets` library with a column of texts, with prompts and responses, or with
    conversations, which are read as by `instructions`.

    Left out, counted and logged: rows without text, or without an answer.

    path:        name on the hub, or a local folder (save_to_disk, parquet or jsonl files)
    config:      the data set's configuration, when it has several
    revision:    branch, tag or commit on the hub
    train_split: name of the training split
    test_split:  name of the test split; the first of test, validation, valid, val if left out
    column:      with the text; if nothing is said of columns the first of text, content, document, or else
        of messages, conversations, conversation
    prompt, response: instead, the columns of a prompt and of its response
    messages:    instead, the column with a list of messages, each with `role` and `content`
    """

    path: str
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str | None = None
    column: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.response is None):
            raise UserError("prompt and response go together; write both columns, or neither")
        given = [name for name in ("column", "prompt", "messages") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: a row is read in one way; write one of them")

    def build(self, split: str) -> TextSource:
        """Raises UserError: `datasets` not installed, nothing found, no such split or column."""
        check_split(split)
        splits = load_splits(self.path, self.config, self.revision)
        name = own_split(self.path, splits, split, self.train_split, self.test_split)
        table, columns, answered = splits[name], *self._columns(splits[name])
        for column in columns:
            check_column(table, column, self.path)
        return TableTexts(table.select_columns(list(columns)), columns, answered, f"{self.path}: {name}")

    @staticmethod
    def recognise(path: Path) -> DatasetTexts | None:
        """Of a folder that `save_to_disk` wrote, or of parquet files."""
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
        parquet = any(any(path.glob(pattern)) for pattern in ("*.parquet", "*/*.parquet"))
        return DatasetTexts(path=str(path)) if saved or parquet else None

    def _columns(self, table: Any) -> tuple[tuple[str, ...], bool]:
        """(the columns that are read, whether they hold conversations)"""
        if self.prompt is not None and self.response is not None:
            return (self.prompt, self.response), True
        for given, answered in ((self.column, False), (self.messages, True)):
            if given is not None:
                return (given,), answered
        for names, answered in ((TEXT_COLUMNS, False), (MESSAGE_COLUMNS, True)):
            for name in names:
                if name in table.column_names:
                    return (name,), answered
        raise UserError(
            f"{self.path}: which column holds texts{suggest('text', table.column_names)}; write column: "
            "NAME, messages: NAME, or prompt: and response:"
        )


@dataclass(frozen=True)
class TableTexts:
    """Rows of an Arrow table. A `TextSource`."""

    table: Any
    columns: tuple[str, ...]
    answered: bool
    where: str

    @property
    def stamp(self) -> str:
        return json.dumps(["datasets", self.table._fingerprint, self.columns, self.answered])

    def documents(self, left_out: LeftOut) -> Iterator[Document]:
        for start in range(0, len(self.table), _ROWS):
            part = self.table[start : start + _ROWS]
            for number, cells in enumerate(zip(*(part[name] for name in self.columns), strict=True), start):
                where = f"{self.where}: row {number}"
                found = self._document(cells, where)
                if found:
                    yield found
                else:
                    left_out.add(UNANSWERED if self.answered else EMPTY, where)

    def _document(self, cells: tuple[Any, ...], where: str) -> Document | None:
        if len(cells) == 2:
            prompt, response = self.columns
            return asked_and_answered(dict(zip(self.columns, cells, strict=True)), prompt, response, where)
        if self.answered:
            return conversation(cells[0], f"{where}: {self.columns[0]}")
        text = written(cells[0], f"{where}: {self.columns[0]}")
        return text if text.strip() else None
