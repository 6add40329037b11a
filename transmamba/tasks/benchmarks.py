"""Benchmarks on which a language model is measured beside its texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.task import Evaluator, Metric
from ..core.text import LanguageTokenizer
from ..data.text.letters import Lettered
from ..data.text.recall import Recalled
from ..errors import UserError


class Benchmarks:
    """Those of one task, as one model sees them.

    parts: configured ones, no two of one name

    Raises UserError as they do, so that what is wrong with one is known before training, not after.
    """

    def __init__(self, parts: Sequence[Any], tokenizer: LanguageTokenizer) -> None:
        self.evaluators = tuple(_evaluator(number, part, tokenizer) for number, part in enumerate(parts))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for evaluator in self.evaluators for metric in evaluator.metrics)


def names_twice(parts: Sequence[Any]) -> list[str]:
    """A line for each name that two benchmarks have: their numbers would be called alike."""
    names = [part.name for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"benchmarks has two called {name}; keep one of them" for name in twice]


def _evaluator(number: int, part: Any, tokenizer: LanguageTokenizer) -> Evaluator:
    from ..evaluation.letters import LettersEvaluator
    from ..evaluation.likelihood import LikelihoodEvaluator
    from ..evaluation.recall import RecallEvaluator

    try:
        items = part.build(tokenizer)
    except UserError as error:
        raise UserError(f"benchmarks.{number}: {error}") from error
    if isinstance(items[0], Recalled):
        return RecallEvaluator(part.name, items, tokenizer)
    if isinstance(items[0], Lettered):
        return LettersEvaluator(part.name, items, tokenizer)
    return LikelihoodEvaluator(part.name, items, tokenizer)
