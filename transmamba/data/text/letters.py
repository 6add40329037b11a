"""Multiple choice by the letters of options, which stand in several orders.

A model that likes a letter, or a place, whatever stands there shows it: its answer changes with the order
("Large Language Models Are Not Robust Multiple Choice Selectors", arXiv 2309.03882).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...config.registry import BENCHMARKS
from ...errors import UserError
from .benchmarks import ArcEasy, Question

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Lettered:
    """A question whose options stand in one order, each behind a letter.

    number:  of the question
    context: what stands before the letter that is asked
    order:   which of its options stands at each letter
    answer:  which of its options is right
    """

    number: int
    context: str
    order: tuple[int, ...]
    answer: int


@BENCHMARKS.register("arc_easy_letters")
@dataclass(frozen=True, kw_only=True)
class ArcEasyLetters(ArcEasy):
    """ARC-Easy (arXiv 1803.05457) as MMLU is asked: lettered options, of which a letter is the answer.

    path: its file, or the folder that holds it
    items: so many of its questions, drawn at random but always the same; all if left out
    permuted: orders of the options in which each question is asked, at most as many as there are. In the
        first ones every option stands once at every letter; 1 is the file's order alone
    """

    permuted: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.permuted < 1:
            raise UserError(f"permuted is {self.permuted}; write a number of orders, at least 1")

    def build(self, tokenizer: Any) -> list[Lettered]:  # type: ignore[override]
        """Raises UserError as the others do."""
        return [
            Lettered(number, _asked(question, order), order, question.answer)
            for number, question in enumerate(super().build(tokenizer))
            for order in itertools.islice(orders(len(question.choices)), self.permuted)
        ]


def orders(count: int) -> Iterator[tuple[int, ...]]:
    """All `count!` orders of so many options: the first turned round by one each time, then another one that
    begins with 0 likewise."""
    for rest in itertools.permutations(range(1, count)):
        first = (0, *rest)
        for turn in range(count):
            yield first[turn:] + first[:turn]


def _asked(question: Question, order: tuple[int, ...]) -> str:
    head = question.context.removesuffix("\nAnswer:")
    options = zip(LETTERS, (question.choices[k] for k in order), strict=False)
    lines = "".join(f"\n{letter}. {option}" for letter, option in options)
    return f"{head}{lines}\nAnswer:"
