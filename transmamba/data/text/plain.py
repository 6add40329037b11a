"""Texts in files: plain ones, and a column of a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...config.registry import TEXTS
from ...errors import UserError
from ..pairs.captions import LeftOut
from ..pairs.source import need_a_split, of_split
from .files import PLAIN, TABLES, found_files, kind_of, plain_texts, shortly, stamp_of, table_rows
from .source import EMPTY, Document, TextSource, written

KINDS = (*PLAIN, *TABLES)
Files = str | tuple[str, ...]


@TEXTS.register("text")
@dataclass(frozen=True, kw_only=True)
class Text:
    """Files of texts: plain (.txt, .md), or a column of tables (.jsonl, .json, .csv, .tsv, .parquet), all but
    parquet also compressed (.gz, .xz, .bz2, .zst).

    Rows of a table are documents. Left out, counted and logged: documents without text.

    train, test: files, one or a list, with `*`, `{a,b}` and `{000..123}`; one split may be left out
    column: of tables, the one with the text
    separator: of plain files, a regular expression of the whole line between two documents, such as
        `<.endoftext.>`, or an empty text for empty lines; left out: a file is a document
    keep_separator: that line is a heading, and begins the document behind it (WikiText: ` = [^=]*= `)
    """

    train: Files | None = None
    test: Files | None = None
    column: str = "text"
    separator: str | None = None
    keep_separator: bool = False

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "text")
        if self.keep_separator and self.separator is None:
            raise UserError("keep_separator is true, but there is no separator; write one, or leave it out")
        self.pattern  # noqa: B018

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """Raises UserError where `separator` is no regular expression."""
        try:
            return None if self.separator is None else re.compile(self.separator)
        except re.error as error:
            raise UserError(f"separator {self.separator!r} is no regular expression ({error})") from None

    def build(self, split: str) -> TextSource:
        """Raises UserError for a file that is not there or of an unknown kind."""
        return TextFiles(found_files(of_split(split, self.train, self.test, "text"), KINDS), self)

    @staticmethod
    def recognise(path: Path) -> Text | None:
        """Of a file of one of the kinds, which is then both splits: what is measured or looked at is one."""
        known = path.is_file() and kind_of(str(path))[0] in KINDS
        return Text(train=str(path), test=str(path)) if known else None


@dataclass(frozen=True)
class TextFiles:
    """Those of one split. A `TextSource`."""

    files: tuple[str, ...]
    config: Text
    answered = False

    @property
    def where(self) -> str:
        return shortly(self.files)

    @cached_property
    def stamp(self) -> str:
        config = self.config
        return stamp_of(self.files, "text", config.column, config.separator, config.keep_separator)

    def documents(self, left_out: LeftOut) -> Iterator[Document]:
        for path in self.files:
            for where, text in self._texts(path):
                if text.strip():
                    yield text
                else:
                    left_out.add(EMPTY, where)

    def _texts(self, path: str) -> Iterator[tuple[str, str]]:
        config = self.config
        if kind_of(path)[0] in PLAIN:
            yield from plain_texts(path, config.pattern, config.keep_separator)
            return
        for where, row in table_rows(path, (config.column,)):
            yield where, written(row.get(config.column), f"{where}: {config.column}")
