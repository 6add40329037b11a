"""Whether a model reads and predicts the words of a task's data."""

from __future__ import annotations

from typing import Any

from ..core.preprocessing import PicturesAndText
from ..core.text import LanguageTokenizer, TextOnly
from ..errors import UserError


def check_words(model: Any, who: str, task: str, needs: str, tokenizer: LanguageTokenizer) -> None:
    """Raises UserError for one that predicts no tokens (`needs` is what does), or whose vocabulary or
    tokenizer is not that of the data."""
    words = vocabulary_of(model)
    if words is None:
        raise UserError(f"{who} predicts no tokens; the task {task} needs {needs}")
    if tokenizer.vocabulary > words:
        raise UserError(
            f"{who} has a vocabulary of {words} tokens, but the data's tokenizer numbers "
            f"{tokenizer.vocabulary}; choose models that share a tokenizer"
        )
    looks = getattr(model, "preprocessing", None)
    if isinstance(looks, TextOnly | PicturesAndText) and looks.text.identity != tokenizer.identity:
        raise UserError(
            f"{who} reads by another tokenizer, of {looks.text.vocabulary} tokens, than the data's, "
            f"of {tokenizer.vocabulary}; choose models that share one"
        )


def vocabulary_of(model: Any) -> int | None:
    """How many tokens a model predicts; None for one that predicts none. A student's configuration says, of
    one with several parts that of its decoder."""
    told = getattr(model, "vocabulary", None)
    if told is None and getattr(model, "view", None) is None:
        config = getattr(model, "config", None)
        decoder = getattr(config, "text_config", None)
        told = getattr(config if decoder is None else decoder, "vocab_size", None)
    return told if isinstance(told, int) else None
