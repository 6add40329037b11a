"""How a text becomes a model's input: rows of one length for what embeds it, whole for what writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Texts as numbers.

    ids:       (B, L) int64
    mask:      (B, L) bool, which of them are real; None for a model that reads its padding too
    truncated: how many of the texts were longer than the model reads
    """

    ids: Tensor
    mask: Tensor | None
    truncated: int


class Tokenizer(Protocol):
    """Frozen, picklable and equal where it does the same: two models that read alike share their batches.

    context: tokens of a row, L
    """

    @property
    def context(self) -> int: ...

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Every row of length L; longer texts are cut, as their own library cuts them."""

    def save(self, folder: Path) -> None:
        """Write the files that it is made of, if there are any."""


@dataclass(frozen=True)
class Message:
    """What one side of a conversation says; role: `system`, `user` or `assistant`."""

    role: str
    content: str


class LanguageTokenizer(Protocol):
    """What a language model reads and writes with: whole texts of any length, as they are. Frozen, picklable
    and equal where it does the same.

    context:    tokens that its model reads at once; None where nothing says so
    vocabulary: one more than its largest number
    eos:        the token that ends a text. Raises UserError where there is none
    prefix:     the tokens that begin a text: its BOS, or nothing
    identity:   a hash of all that its numbers depend on
    """

    @property
    def context(self) -> int | None: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def eos(self) -> int: ...

    @property
    def prefix(self) -> tuple[int, ...]: ...

    @property
    def identity(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The texts alone, without what begins and ends one."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def chat(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[list[int], list[bool]]]:
        """(tokens, which of them the assistant writes) of each, as the model's chat template has it. Raises
        UserError where there is no template, or it takes no such conversation."""

    def save(self, folder: Path) -> None:
        """Write the files that it is made of."""


@dataclass(frozen=True)
class TextOnly:
    """The preprocessing of a model that reads texts alone."""

    text: LanguageTokenizer
