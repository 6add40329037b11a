"""How the task `questions` puts items to a model, and which models fit its data."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.preprocessing import PicturesAndText
from ..core.text import TextOnly
from ..data.questions.asked import Asking, Style
from ..data.questions.batches import naming
from ..data.questions.source import MARK, Item, QuestionSource
from ..ecosystems.language_tokenizer import HuggingFaceTokenizer
from ..errors import UserError
from .vocabulary import check_words

Indices = npt.NDArray[np.int64]


def asking_of(preprocessing: Any, style: Style, context: int | None) -> Asking:
    """Raises UserError for a model that does not say how it reads texts, or pictures where they are shown,
    and for a context beyond its own, which is taken where it is None."""
    if not isinstance(preprocessing, TextOnly | PicturesAndText):
        raise UserError(
            "this model does not say how its texts are read; the task questions needs a LLaVA with its "
            "tokenizer beside it (tokenizer.json)"
        )
    words = preprocessing.text
    if not isinstance(words, HuggingFaceTokenizer):
        raise UserError("the task questions needs a model with a tokenizer of transformers")
    if isinstance(preprocessing, TextOnly):
        _check_blind(style, "this model")
    else:
        _check_mark(words, preprocessing.image_token)
    longest = context or words.context
    if longest is None:
        raise UserError("nothing says how many tokens this model reads at once; write task.context")
    _check_context(longest, words.context, "the model")
    return Asking(preprocessing, style, longest)


def check_fits(model: Any, who: str, asking: Asking, apart: bool = False) -> None:
    """Raises UserError for one that predicts no tokens, or whose words, pictures or context are not those of
    the data.

    apart: whether it reads batches of its own, in which a picture may take another number of tokens
    """
    looks = getattr(model, "preprocessing", None)
    check_words(model, who, "questions", "a model that writes, such as a LLaVA", asking.tokenizer)
    if not isinstance(looks, TextOnly | PicturesAndText):
        return
    _check_context(asking.longest, looks.text.context, who)
    if isinstance(looks, TextOnly):
        _check_blind(asking.style, who)
    elif asking.style.pictures:
        for what, theirs, mine in (
            ("tokens of a picture: ", looks.places, asking.places),
            ("image token ", looks.image_token, asking.image_token),
        ):
            if theirs != mine and not (apart and what.startswith("tokens")):
                raise UserError(
                    f"{who}'s {what}{theirs}, the data are made for {mine}; choose models that share a tower "
                    "and a tokenizer"
                )


def check_askable(asking: Asking, source: QuestionSource, room: int, number: int) -> None:
    """Raises UserError, naming it, for an item that cannot be asked, with an answer of `room` tokens."""
    with naming(number):
        item = source.item(number)
        if item.rationale is not None or not asking.style.rationales:
            asking.example(item)
        asking.prompt(item, room)
        if asking.style.pictures and not getattr(source, "drawn", False):
            item.images()


def explained(source: QuestionSource, index: Indices, most: int | None = None) -> Indices:
    """Those of the items `index` that have a rationale, the first `most` of them."""
    reasoned = (number for number in index.tolist() if source.item(number).rationale is not None)
    return np.fromiter(islice(reasoned, most), dtype=np.int64)


def usable(asking: Asking, number: int, item: Item) -> tuple[list[int], int]:
    """The item as it is learned. Raises UserError, naming it, for one that cannot be."""
    with naming(number):
        return asking.example(item)


def _check_blind(style: Style, who: str) -> None:
    if style.pictures:
        raise UserError(f"{who} reads no pictures; write task.pictures: none, or choose a LLaVA")


def _check_mark(words: HuggingFaceTokenizer, number: int) -> None:
    """Raises UserError where the image token does not stand for one mark in a text."""
    mark = words.decode([number])
    if words.encode([mark]) != [[number]]:
        raise UserError(
            f"tokenizer of {words.name!r}: does not read the image token {number} ({mark!r}) as one token; "
            f"add {MARK} to its special tokens under that number"
        )


def _check_context(longest: int, context: int | None, who: str) -> None:
    if context is not None and longest > context:
        raise UserError(
            f"context is {longest} tokens, but {who} reads at most {context} at once; write "
            f"task.context: {context} or less"
        )
