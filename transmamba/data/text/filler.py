"""Real text that stands around what is to be recalled, a sentence a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...core.text import LanguageTokenizer
from ...errors import UserError
from ..pairs.captions import LeftOut
from .plain import Text

# documents that are tokenised at a time
_TOGETHER = 16
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class Filler:
    """Sentences of a file of texts as lines of token numbers, in the file's order."""

    def __init__(self, lines: list[list[int]]) -> None:
        self.lines, self.tokens = lines, sum(map(len, lines))

    @classmethod
    def of(cls, path: str, tokenizer: LanguageTokenizer, tokens: int) -> Filler:
        """Of the first documents that have so many tokens, or of all. Raises UserError for a file that is no
        text, or an empty one."""
        lines: list[list[int]] = []
        held = 0
        for sentences in _together(_documents(path)):
            found = tokenizer.encode([f"{sentence}\n" for sentence in sentences])
            lines += found
            held += sum(map(len, found))
            if held >= tokens:
                break
        if not held:
            raise UserError(f"{path}: has no text")
        return cls(lines)

    def before(self, end: int, tokens: int) -> list[list[int]]:
        """The lines before number `end`, of so many tokens together: the first is cut at its beginning.
        Before the first of all comes the last."""
        taken: list[list[int]] = []
        left = tokens
        while left > 0:
            line = self.lines[(end - 1 - len(taken)) % len(self.lines)]
            taken.append(line[-left:])
            left -= len(line)
        return taken[::-1]


def _documents(path: str) -> Iterator[str]:
    file = str(Path(path).expanduser())
    left_out = LeftOut()
    for document in Text(test=file).build("test").documents(left_out):
        assert isinstance(document, str), "texts have no conversations"
        yield document


def _together(documents: Iterator[str]) -> Iterator[list[str]]:
    sentences: list[str] = []
    for number, document in enumerate(documents, 1):
        sentences += [part.strip() for part in _SENTENCE.split(document) if part.strip()]
        if number % _TOGETHER == 0:
            yield sentences
            sentences = []
    if sentences:
        yield sentences
