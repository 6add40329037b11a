"""What every reader of texts returns: documents one after another, each a text or a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...core.text import Message
from ...errors import UserError
from ..pairs.captions import LeftOut


@dataclass(frozen=True)
class Completion:
    """A text of which only the end is asked: `after` follows `before` as it stands, without a template."""

    before: str
    after: str


# a text, what is said in turns, or a text with an end that is asked
Document = str | tuple[Message, ...] | Completion

EMPTY = "without text"
UNANSWERED = "without an answer"


class TextSource(Protocol):
    """One split of a data set of documents, read through once. Their order never changes.

    where:    what it is read from, for what is said of it
    stamp:    changes with what is in there, and with how it is read
    answered: whether a part of its documents is what is asked: of conversations the assistant's, of
              completions the end
    """

    @property
    def where(self) -> str: ...

    @property
    def stamp(self) -> str: ...

    @property
    def answered(self) -> bool: ...

    def documents(self, left_out: LeftOut) -> Iterator[Document]:
        """All documents; those left out are counted. Raises UserError for what cannot be read."""


def written(cell: Any, where: str) -> str:
    """The text in a cell, empty where there is none. Raises UserError, with `where`, for anything else."""
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise UserError(f"{where}: {cell!r:.60} is no text")
    # a lone half of a surrogate pair, which JSON may hold, is nothing that a tokenizer takes
    return cell if cell.isascii() else cell.encode("utf-8", "replace").decode("utf-8")


def asked_and_answered(row: Mapping[str, Any], prompt: str, response: str, where: str) -> Document | None:
    """The conversation in two columns; None where one of them is empty."""
    said = [written(row.get(column), f"{where}: {column}") for column in (prompt, response)]
    if not all(text.strip() for text in said):
        return None
    return Message("user", said[0]), Message("assistant", said[1])


def conversation(cell: Any, where: str) -> Document | None:
    """The conversation in a column of messages; None where the assistant says nothing. Raises UserError for
    what is no list of them."""
    found = [_message(item, where) for item in cell] if isinstance(cell, list) else None
    if found is None and cell is not None:
        raise UserError(f"{where}: {cell!r:.60} is no list of messages, each with role and content")
    answered = any(message.role == "assistant" and message.content.strip() for message in found or ())
    return tuple(found or ()) if answered else None


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
        raise UserError(f"{where}: {item!r:.60} is no message; write an object with role and content")
    return Message(item["role"], written(item.get("content"), where))
