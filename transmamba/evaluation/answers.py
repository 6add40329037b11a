"""How right an answer to a question about pictures is: VQA's soft accuracy, exact match, multiple choice, and
true or false; and the same by type of question."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.task import Listing
from ..data.questions.source import Item
from ..data.staged import final_answer
from .normalised import normalised

PEOPLE = 10  # of whom VQA asked each question
_AGREE = 3  # people with whom an answer is wholly right
LETTERS = string.ascii_uppercase
OPEN, CHOICE, TRUTH = "open", "multiple choice", "true or false"

_TRUE, _FALSE = frozenset(("yes", "true")), frozenset(("no", "false"))
# B   (B)   B.   B) text   B: text
_LETTER = re.compile(r"\(([A-Z])\)|([A-Z])(?:$|[.):,])")
_SAID = re.compile(r"\b(?:answer|option|choice)\b(?: is)?:? *(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """How right one answer is.

    kind:  OPEN, CHOICE or TRUTH
    soft:  0 to 1: the share of agreement where ten people answered, else as `exact`
    exact: whether it is the answer, or that of most people
    known: whether it is any answer at all: a text, one of the choices, yes, no, true or false
    """

    kind: str
    soft: float
    exact: bool
    known: bool


def judge(item: Item, said: str) -> Verdict:
    """Of what was said, its conclusion where it is in stages."""
    answer, kind = final_answer(said), kind_of(item)
    if kind == CHOICE:
        place = chosen(answer, item.choices)
        right = place is not None and item.choices[place] in item.answers
        return Verdict(kind, float(right), right, place is not None)
    if kind == TRUTH:
        truth = truth_of(answer)
        exact = truth is not None and truth == truth_of(main_answer(item.answers))
        written = answer if truth is None else "yes" if truth else "no"  # as ten people answer
        soft = soft_accuracy(written, item.answers) if len(item.answers) == PEOPLE else float(exact)
        return Verdict(kind, soft, exact, truth is not None)
    if normalised(answer):
        return Verdict(
            kind, soft_accuracy(answer, item.answers), exact_match(answer, item.answers), known=True
        )
    # nothing is left of the answer "A", and nothing of silence, which is never right
    own = answer.strip().lower()
    right = any(map(str.isalnum, own)) and own in {each.strip().lower() for each in item.answers}
    return Verdict(kind, float(right), right, right)


def kind_of(item: Item) -> str:
    """OPEN, CHOICE or TRUTH: one with choices, or whose answer is yes, no, true or false."""
    if item.choices:
        return CHOICE
    return OPEN if _truth(normalised(main_answer(item.answers))) is None else TRUTH


def soft_accuracy(said: str, answers: Sequence[str]) -> float:
    """VQA's accuracy, 0 to 1: of ten people, the mean over each nine of them of min(1, agreeing / 3). With
    another number of answers all are right, and it is 1 for any of them."""
    own = normalised(said)
    agree = sum(normalised(answer) == own for answer in answers)
    if len(answers) != PEOPLE:
        return float(agree > 0)
    # left out is one who agrees, `agree` times, or one who does not
    with_one_less, with_all = min(1.0, (agree - 1) / _AGREE), min(1.0, agree / _AGREE)
    return (agree * with_one_less + (PEOPLE - agree) * with_all) / PEOPLE


def exact_match(said: str, answers: Sequence[str]) -> bool:
    """Whether it is the same, normalised: as what most of ten people answered, else as any answer."""
    own = normalised(said)
    if len(answers) == PEOPLE:
        return own == normalised(main_answer(answers))
    return own in {normalised(answer) for answer in answers}


def main_answer(answers: Sequence[str]) -> str:
    """What most people answered, of ties the first."""
    counts = Counter(normalised(answer) for answer in answers)
    return max(answers, key=lambda answer: counts[normalised(answer)])


def chosen(said: str, choices: Sequence[str]) -> int | None:
    """Which of the choices an answer names: by its text, by a letter as `B`, `(B)`, `B.`, or, in a longer
    one, as `the answer is B`, or as the only choice whose words stand in it. None where it names none, or
    several."""
    behind = _SAID.search(said)
    for part in (said, *((behind[1],) if behind else ())):
        place = _named(part.strip(), choices)
        if place is not None:
            return place
    texts, words = [normalised(choice) for choice in choices], f" {normalised(said)} "
    named = [place for place, text in enumerate(texts) if text and f" {text} " in words]
    # of "light blue" and "blue" the longer one was meant
    named = [n for n in named if not any(n != m and f" {texts[n]} " in f" {texts[m]} " for m in named)]
    return named[0] if len(named) == 1 else None


def _named(said: str, choices: Sequence[str]) -> int | None:
    """The choice that these words, a letter, or these words normalised are."""
    lower = [choice.strip().lower() for choice in choices]
    if lower.count(said.lower()) == 1:
        return lower.index(said.lower())
    letter = _LETTER.match(said)
    if letter is not None and (place := LETTERS.index(letter[1] or letter[2])) < len(choices):
        return place
    texts, own = [normalised(choice) for choice in choices], normalised(said)
    return texts.index(own) if own and texts.count(own) == 1 else None


def truth_of(said: str) -> bool | None:
    """Whether yes or true, or no or false is said: as first word, or as the only one of these anywhere where
    nothing is negated ("not true")."""
    words = normalised(said).split()
    first = _truth(words[0]) if words else None
    if first is not None:
        return first
    if any(word == "not" or word.endswith("n't") for word in words):
        return None
    found = {_truth(word) for word in words} - {None}
    return found.pop() if len(found) == 1 else None


def _truth(word: str) -> bool | None:
    return True if word in _TRUE else False if word in _FALSE else None


@dataclass(frozen=True)
class Score:
    """Of several answers, in percent; unknown: how many were no answer at all."""

    asked: int
    soft: float
    exact: float
    unknown: int

    @classmethod
    def of(cls, verdicts: Sequence[Verdict]) -> Score:
        """Of at least one."""
        return cls(
            len(verdicts),
            100.0 * float(np.mean([verdict.soft for verdict in verdicts])),
            100.0 * float(np.mean([verdict.exact for verdict in verdicts])),
            sum(not verdict.known for verdict in verdicts),
        )


def by_type(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, Score]:
    """All, each kind (where there are several) and each type (where there are any), by name."""
    groups: dict[str, list[Verdict]] = {"all": list(verdicts)}
    kinds = sorted({verdict.kind for verdict in verdicts})
    for kind in kinds if len(kinds) > 1 else ():
        groups[kind] = [verdict for verdict in verdicts if verdict.kind == kind]
    for item, verdict in zip(items, verdicts, strict=True):
        if item.type:
            groups.setdefault(f"type {item.type}", []).append(verdict)
    return {name: Score.of(group) for name, group in groups.items()}


def listing(title: str, scores: dict[str, Score]) -> Listing:
    """A table of them."""
    rows = [
        (name, str(score.asked), f"{score.soft:.1f}", f"{score.exact:.1f}", str(score.unknown))
        for name, score in scores.items()
    ]
    return Listing(title, ("questions", "asked", "accuracy %", "exact match %", "no answer"), rows)
