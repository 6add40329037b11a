"""Prompts with their responses, or whole conversations, in files: written by the model's chat template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ...config.registry import TEXTS
from ..pairs.captions import LeftOut
from ..pairs.source import need_a_split, of_split
from .files import TABLES, found_files, shortly, stamp_of, table_rows
from .plain import Files
from .source import UNANSWERED, Document, TextSource, asked_and_answered, conversation


@TEXTS.register("instructions")
@dataclass(frozen=True, kw_only=True)
class Instructions:
    """Tables of prompts with responses, or of conversations (.jsonl, .json, .csv, .tsv, .parquet), all but
    parquet also compressed (.gz, .xz, .bz2, .zst).

    A row is a document, written by the chat template of the model's tokenizer; the answers in it are what
    the assistant says, with the token that ends it. Left out, counted and logged: rows without an answer.

    train, test: files, one or a list, with `*`, `{a,b}` and `{000..123}`; one split may be left out
    prompt, response: the columns of a prompt and of its response
    messages: instead of these two, the column with a list of messages, each with `role` and `content`
    """

    train: Files | None = None
    test: Files | None = None
    prompt: str = "prompt"
    response: str = "response"
    messages: str | None = None

    def __post_init__(self) -> None:
        need_a_split(self.train, self.test, "instructions")

    def build(self, split: str) -> TextSource:
        """Raises UserError for a file that is not there or of an unknown kind."""
        files = found_files(of_split(split, self.train, self.test, "instructions"), TABLES)
        return InstructionFiles(files, self)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.prompt, self.response) if self.messages is None else (self.messages,)


@dataclass(frozen=True)
class InstructionFiles:
    """Those of one split. A `TextSource`."""

    files: tuple[str, ...]
    config: Instructions
    answered = True

    @property
    def where(self) -> str:
        return shortly(self.files)

    @cached_property
    def stamp(self) -> str:
        return stamp_of(self.files, "instructions", *self.config.columns)

    def documents(self, left_out: LeftOut) -> Iterator[Document]:
        config = self.config
        for path in self.files:
            for where, row in table_rows(path, config.columns):
                if config.messages is not None:
                    found = conversation(row.get(config.messages), f"{where}: {config.messages}")
                else:
                    found = asked_and_answered(row, config.prompt, config.response, where)
                if found is not None:
                    yield found
                else:
                    left_out.add(UNANSWERED, where)
