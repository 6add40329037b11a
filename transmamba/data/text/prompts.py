"""What a language model is to go on from: how documents begin, or what users ask in conversations."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ...core.text import Message
from ...errors import UserError
from ..hashing import permutation
from ..pairs.captions import LeftOut
from .source import Completion, Document, TextSource

SHORT, LONG, UNASKED = "shorter than a prompt", "longer than the model reads", "without a user's turn"
# characters of a document that are tokenised for each token of its prompt; more only where these do not do
_HEAD, _LEAST = 16, 200
_AT_ONCE = 1000
# which hash of (seed, ..., number): an epoch's order, augmentation and mixed texts use others
_ORDER = 4


class Writes(Protocol):
    """Of a tokenizer of transformers, what is needed here."""

    @property
    def prefix(self) -> tuple[int, ...]: ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str: ...


@dataclass(frozen=True)
class Prompt:
    """ids: its tokens, with what begins a text; said: of a conversation, the turns before the answer."""

    ids: tuple[int, ...]
    said: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """Those of a source.

    asked:    whether they are conversations, of which the assistant's next turn is to be written
    left_out: documents that none was made of
    """

    all: Sequence[Prompt]
    asked: bool
    left_out: LeftOut

    @property
    def plain(self) -> bool:
        """Whether all are one user's turn alone, so that `prompt` and `response` say all."""
        return all([message.role for message in prompt.said] == ["user"] for prompt in self.all)

    def chosen(self, number: int, seed: int) -> list[Prompt]:
        """So many in an order that the seed draws: all of them before one comes again, then in another."""
        turns = range(-(-number // len(self.all)))
        order = np.concatenate([permutation(len(self.all), seed, _ORDER, turn) for turn in turns])
        return [self.all[place] for place in order[:number].tolist()]


def prompts_of(source: TextSource, tokenizer: Writes, tokens: int, most: int | None) -> Prompts:
    """The prompts in a source: the first `tokens` tokens of each text, or each conversation up to its last
    answer, by the chat template.

    most: tokens of a prompt at most; None where nothing limits it

    Raises UserError as the source and the tokenizer do, and where no prompt is left.
    """
    left_out = LeftOut()
    documents = source.documents(left_out)
    make = _asked(documents, tokenizer) if source.answered else _begun(documents, tokenizer, tokens)
    found = []
    for prompt, trouble in make:
        if prompt is not None and most is not None and len(prompt.ids) > most:
            prompt, trouble = None, LONG
        if prompt is None:
            left_out.add(trouble, source.where)
        else:
            found.append(prompt)
    if not found:
        raise UserError(f"{source.where}: holds no prompts" + (f": {left_out}" if left_out.total else ""))
    return Prompts(found, source.answered, left_out)


def hash_of(prompts: Sequence[Prompt]) -> str:
    """SHA-256 in hex, of their tokens."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(np.array([len(prompt.ids), *prompt.ids], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _begun(
    documents: Iterator[Document], tokenizer: Writes, tokens: int
) -> Iterator[tuple[Prompt | None, str]]:
    """(prompt, or why there is none) of each text."""
    longest, prefix = max(_LEAST, _HEAD * tokens), tokenizer.prefix
    for texts in _several(documents):
        heads = [text[:longest] for text in texts]
        encoded = tokenizer.encode(heads)
        for text, head, ids in zip(texts, heads, encoded, strict=True):
            # the last token of what is cut may be another one where more follows
            if len(head) < len(text) and len(ids) <= tokens:
                (ids,) = tokenizer.encode([text])
            yield (Prompt((*prefix, *ids[:tokens])), "") if len(ids) >= tokens else (None, SHORT)


def _several(documents: Iterator[Document]) -> Iterator[list[str]]:
    while texts := [text for text in itertools.islice(documents, _AT_ONCE) if isinstance(text, str)]:
        yield texts


def _asked(documents: Iterator[Document], tokenizer: Writes) -> Iterator[tuple[Prompt | None, str]]:
    """(prompt, or why there is none) of each conversation."""
    for turns in documents:
        assert not isinstance(turns, str), "a source is of one kind"
        if isinstance(turns, Completion):
            (ids,) = tokenizer.encode([turns.before])
            yield Prompt((*tokenizer.prefix, *ids)), ""
            continue
        last = max(place for place, message in enumerate(turns) if message.role == "assistant")
        said = turns[:last]
        if not said or said[-1].role != "user":
            yield None, UNASKED
            continue
        (ids,) = tokenizer.encode([tokenizer.render(said, prompt=True)])
        yield Prompt(tuple(ids), said), ""
