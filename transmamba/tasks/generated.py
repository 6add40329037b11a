"""Benchmarks that language models answer in writing, as keys of the task `language`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.task import Evaluator
from ..core.text import LanguageTokenizer
from ..errors import UserError


def check_names(benchmarks: Sequence[Any]) -> list[str]:
    """What is wrong with which there are, in words: each is known by its name."""
    names = [each.name for each in benchmarks]
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"generated has {', '.join(twice)} twice; write each once"] if twice else []


def evaluators_of(benchmarks: Sequence[Any], tokenizer: LanguageTokenizer) -> tuple[Evaluator, ...]:
    """One of each configured benchmark, whose questions are read and found to leave room for their answers.
    Raises UserError where they are not there, or do not."""
    if not benchmarks:
        return ()
    from ..ecosystems.language_tokenizer import HuggingFaceTokenizer
    from ..evaluation.generation import GenerationEvaluator

    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise UserError("generated: only models with a tokenizer of transformers write; leave it out")
    found = []
    for number, each in enumerate(benchmarks):
        try:
            evaluator = GenerationEvaluator(
                each.name, each.build(), tokenizer, each.tokens, each.IN_PARTS, each.STOPS
            )
            evaluator.prompts  # noqa: B018  (before training, not after)
        except UserError as error:
            raise UserError(f"generated.{number}: {error}") from error
        found.append(evaluator)
    return tuple(found)
