"""A few questions of a benchmark to train on, and others of it to be measured by: tasks of little data.

What is trained on is what is scored: the right choice behind the context, after a space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from ...config.load import Part, dump
from ...config.registry import BENCHMARKS, TEXTS
from ...core.text import LanguageTokenizer
from ...errors import UserError, refuse_all
from ..hashing import permutation
from ..images.source import check_split
from ..kept import Kept
from ..pairs.captions import LeftOut
from .benchmarks import Question
from .source import Completion, Document, TextSource

_KEPT = Kept(16)  # what `keep` keeps in this process


@dataclass(frozen=True, kw_only=True)
class _Few:
    """of:       a benchmark of questions with choices
    train:    questions to train on
    held_out: so many of them are not trained on, and are the test split instead, for choosing a rate
    test:     questions of the test split where none are held out; null: all that are left
    seed:     which they are
    keep:     all of its questions, for the next run in this process too, which does not see files change
    """

    of: Annotated[Any, Part(BENCHMARKS)]
    train: int = 1000
    held_out: int = 0
    test: int | None = 1000
    seed: int = 0
    keep: bool = False

    def __post_init__(self) -> None:
        problems = [] if self.train >= 1 else [f"train is {self.train}; write at least 1"]
        if self.test is not None and self.test < 1:
            problems.append(f"test is {self.test}; write at least 1, or null for all that are left")
        if not 0 <= self.held_out < max(1, self.train):
            problems.append(f"held_out is {self.held_out}; write 0, or fewer than train ({self.train})")
        refuse_all(problems)

    def questions(self, split: str) -> list[Question]:
        """Raises UserError as the benchmark does, for one that is no such, and for too few questions."""
        check_split(split)
        every: list[Any] = _KEPT.get(repr(dump(self.of)), self._every) if self.keep else self._every()
        if not every or not isinstance(every[0], Question) or len(every[0].choices) < 2:
            raise UserError(
                f"of: {self.of.name} has no questions with choices; take one that has, such as arc_easy"
            )
        if len(every) <= self.train:
            raise UserError(
                f"train is {self.train}, but {self.of.name} has {len(every)} questions; leave some to test"
            )
        order = permutation(len(every), self.seed)
        trained, rest = order[: self.train - self.held_out], order[self.train - self.held_out : self.train]
        if not self.held_out:
            rest = order[self.train :][: self.test]
        return [every[number] for number in (trained if split == "train" else rest)]

    def _every(self) -> list[Any]:
        """All that the benchmark has; nothing of one whose items are a tokenizer's tokens."""
        try:
            every: list[Any] = self.of.build(None)
        except AttributeError:  # it asked the tokenizer
            every = []
        return every


@TEXTS.register("few_questions")
@dataclass(frozen=True, kw_only=True)
class FewQuestions(_Few):
    """Questions with their right answers, which are what is asked; the benchmark `few_questions` of the same
    options measures those that are not trained on.

    of:       a benchmark of questions with choices
    train:    questions to train on
    held_out: so many of them are not trained on, and are the test split instead, for choosing a rate
    test:     questions of the test split where none are held out; null: all that are left
    seed:     which they are
    keep:     all of its questions, for the next run in this process too, which does not see files change
    """

    def build(self, split: str) -> TextSource:
        return Answered(f"{self.of.name} ({split})", tuple(self.questions(split)))


@BENCHMARKS.register("few_questions")
@dataclass(frozen=True, kw_only=True)
class FewQuestionsAsked(_Few):
    """What the reader of texts `few_questions` with the same options does not train on.

    of:       a benchmark of questions with choices
    train:    questions to train on
    held_out: so many of them are not trained on, and are measured instead of others
    test:     questions that are measured where none are held out; null: all that are left
    seed:     which they are
    keep:     all of its questions, for the next run in this process too, which does not see files change
    """

    def build(self, tokenizer: LanguageTokenizer) -> list[Question]:
        return self.questions("test")


@dataclass(frozen=True)
class Answered:
    """A `TextSource` of questions with their right answers."""

    where: str
    questions: tuple[Question, ...]
    answered = True

    @property
    def stamp(self) -> str:
        return "few_questions " + hashlib.sha256(repr(self.questions).encode()).hexdigest()

    def documents(self, left_out: LeftOut) -> Iterator[Document]:
        for question in self.questions:
            yield Completion(question.context, f" {question.choices[question.answer]}")
