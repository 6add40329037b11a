"""Questions with choices, made of other data: prompts with lettered options, kinds of texts, lists."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ...config.registry import BENCHMARKS
from ...errors import UserError, refuse_all
from ..hashing import Draws, hash64
from .benchmarks import Question
from .files import TABLES, found_files, table_rows
from .plain import Files
from .recall import ADJECTIVES, NOUNS, drawn

_OPTION = re.compile(r"([A-J])\. (.*\S)\s*")


@BENCHMARKS.register("lettered_options")
@dataclass(frozen=True, kw_only=True)
class LetteredOptions:
    """Prompts whose last lines are options (`A. city`), with a response that begins with one of the letters;
    asked are the options' texts. Rows of other forms are left out.

    files: tables of prompts with responses, one or a list
    source: only rows that have this in the column `source`; null: all
    items: so many of its questions, drawn at random but always the same; all if left out
    """

    files: Files
    source: str | None = None
    items: int | None = None

    def build(self, tokenizer: Any) -> list[Question]:
        """Raises UserError for files that are not there or hold no such row."""
        found = []
        columns = ["prompt", "response", *(["source"] if self.source is not None else [])]
        for path in found_files(self.files, TABLES):
            for _, row in table_rows(path, columns):
                if self.source is None or row.get("source") == self.source:
                    found += _lettered(str(row.get("prompt")), str(row.get("response")))
        if not found:
            raise UserError(
                f"{self.files}: no row has a prompt with lettered options and a letter as response"
            )
        return _some(found, self.items)


def _lettered(prompt: str, response: str) -> list[Question]:
    """One question, or none."""
    lines = prompt.rstrip().split("\n")
    options: list[str] = []
    while lines and (match := _OPTION.fullmatch(lines[-1])):
        options.insert(0, match[2])
        letter = match[1]
        lines.pop()
    answer = ord(response[:1] or "?") - ord("A")
    asked = "\n".join(lines).strip()
    if len(options) < 2 or letter != "A" or not 0 <= answer < len(options) or not asked:
        return []
    if response[1:2] not in ("", ".") or len(set(options)) < len(options):
        return []
    return [Question(f"Question: {asked}\nAnswer:", tuple(options), answer)]


@BENCHMARKS.register("kinds_of_texts")
@dataclass(frozen=True, kw_only=True)
class KindsOfTexts:
    """A stretch of a document; where it is from is asked, by a word for each kind.

    files:  tables of documents, with the columns `text` and `source`
    kinds:  word -> how sources of that kind begin
    each:   documents of each kind, as many as there are at most: the first ones
    characters: of the stretch, which begins and ends with whole words somewhere in the document
    seed:   where it is
    """

    _SHORTEST: ClassVar[int] = 40  # characters that tell anything

    files: Files
    kinds: dict[str, tuple[str, ...]]
    each: int = 400
    characters: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        problems = (
            [] if len(self.kinds) > 1 else ["kinds has fewer than two; write word: [SOURCE, ...] for each"]
        )
        if self.each < 1:
            problems.append(f"each is {self.each}; write documents of a kind, at least 1")
        if self.characters < self._SHORTEST:
            problems.append(f"characters is {self.characters}; write at least {self._SHORTEST}")
        refuse_all(problems)

    def build(self, tokenizer: Any) -> list[Question]:
        """Raises UserError for files that are not there, and for a kind without a document."""
        found: list[Question] = []
        counts = Counter[str]()
        words = tuple(self.kinds)
        for text, source in self._documents():
            word = next((w for w in words if source.startswith(tuple(self.kinds[w]))), None)
            if word is None or counts[word] >= self.each:
                continue
            stretch = self._stretch(text, len(found))
            if stretch:
                counts[word] += 1
                asked = f"{stretch}\n\nThis text is about:"
                found.append(Question(asked, words, words.index(word)))
            if sum(counts.values()) == self.each * len(words):
                break
        for word in words:
            if not counts[word]:
                raise UserError(
                    f"kinds: no source in {self.files} begins with {' or '.join(self.kinds[word])}"
                )
        return found

    def _documents(self) -> Iterator[tuple[str, str]]:
        for path in found_files(self.files, TABLES):
            for _, row in table_rows(path, ["text", "source"]):
                yield str(row.get("text") or ""), str(row.get("source") or "")

    def _stretch(self, text: str, number: int) -> str:
        """Whole words of one line; empty where the document is too short."""
        words = text.split()
        line = " ".join(words)
        if len(line) < self.characters:
            return line if len(line) >= self._SHORTEST else ""
        start = Draws(int(hash64(self.seed, number)[0])).below(len(line) - self.characters + 1)
        part = line[start : start + self.characters]
        if start:
            part = part.partition(" ")[2]
        return part.rpartition(" ")[0]


@BENCHMARKS.register("key_value_choices")
@dataclass(frozen=True, kw_only=True)
class KeyValueChoices:
    """A list of `key: word` and one of its keys again: which of the list's words stands behind it?

    pairs: of a list, and choices
    items: lists
    seed:  which they are
    """

    pairs: int = 8
    items: int = 3000
    seed: int = 0

    def __post_init__(self) -> None:
        most = len(NOUNS.split())
        problems = []
        if not 2 <= self.pairs <= most:
            problems.append(f"pairs is {self.pairs}; write from 2 to {most}")
        if self.items < 1:
            problems.append(f"items is {self.items}; write at least 1")
        refuse_all(problems)

    def build(self, tokenizer: Any) -> list[Question]:
        return [self._question(Draws(int(hash64(self.seed, number)[0]))) for number in range(self.items)]

    def _question(self, draws: Draws) -> Question:
        keys = [key for key, _ in zip(drawn(ADJECTIVES.split(), draws), range(self.pairs), strict=False)]
        words = [word for word, _ in zip(drawn(NOUNS.split(), draws), range(self.pairs), strict=False)]
        at = draws.below(self.pairs)
        lines = "".join(f"{key}: {word}\n" for key, word in zip(keys, words, strict=True))
        return Question(f"{lines}\n{keys[at]}:", tuple(words), at)


def _some(questions: list[Question], items: int | None) -> list[Question]:
    if items is None or items >= len(questions):
        return questions
    return random.Random(0).sample(questions, items)
