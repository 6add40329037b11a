"""Tokenizers of transformers for language models: whole texts, and conversations by their chat template."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.text import Message, TextOnly
from ..errors import UserError
from . import decoders
from .byte_tokenizer import BYTES, byte_tokenizer
from .chat_parts import of_text
from .sources import Source

# a folder's tokenizer is in one of them
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_PROBE = "a"
_SAID = "w5x7"


@dataclass(frozen=True, eq=False)
class HuggingFaceTokenizer:
    """A `core.text.LanguageTokenizer`. Equal to another that makes the same numbers, wherever both lie.

    name:     a folder, an id, or a .gguf file that holds it; bytes for a token each
    context:  of its model
    revision: branch, tag or commit on the Hub, of an id
    added:    words that stand for themselves, added behind its own where it lacks them
    """

    name: str
    context: int | None = None
    revision: str | None = None
    added: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HuggingFaceTokenizer):
            return NotImplemented
        return self.context == other.context and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def vocabulary(self) -> int:
        return self._made.vocabulary

    @property
    def identity(self) -> str:
        return self._made.identity

    @property
    def prefix(self) -> tuple[int, ...]:
        return self._made.prefix

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""
        return self._made.library.chat_template is not None

    @property
    def eos(self) -> int:
        found = self._made.library.eos_token_id
        if found is None:
            raise UserError(
                f"tokenizer of {self.name!r}: has no token that ends a text; name one as eos_token in its "
                "tokenizer_config.json"
            )
        return int(found)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return _numbers(self._made.library, texts) if texts else []

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._made.library.decode(list(ids))
        return text

    def words(self, ids: Sequence[int]) -> str:
        """The text in tokens, without those that stand for no words: ends, padding, the turns of a chat."""
        text: str = self._made.library.decode(list(ids), skip_special_tokens=True)
        return text

    def chat(self, conversations: Sequence[Sequence[Message]]) -> list[tuple[list[int], list[bool]]]:
        if self._made.library.chat_template is None:
            raise UserError(
                f"tokenizer of {self.name!r}: has no chat template to write conversations by; choose an "
                "instruction-tuned model, or put a chat_template.jinja into its folder"
            )
        rendered = [_Rendered.of(self, conversation) for conversation in conversations]
        whole = self.encode([each.text for each in rendered])
        before = {each.text: ids for each, ids in zip(rendered, whole, strict=True)}
        places = {each.text[:end] for each in rendered for span in each.answers for end in span}
        others = sorted(places - before.keys())
        before |= zip(others, self.encode(others), strict=True)
        return [self._asked(each, ids, before) for each, ids in zip(rendered, whole, strict=True)]

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text of a conversation; with `prompt` up to where the assistant is to go on."""
        plain = [_turn(message, self._made.in_parts) for message in messages]
        try:
            text: str = self._made.library.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # whatever a template raises
            said = " ".join(str(error).split())[:200]
            roles = ", ".join(message.role for message in messages)
            raise UserError(
                f"chat template of {self.name!r}: takes no conversation of {roles} ({said})"
            ) from error
        return text

    @property
    def library(self) -> Any:
        """transformers' own."""
        return self._made.library

    def save(self, folder: Path) -> None:
        self._made.library.save_pretrained(str(folder))

    def end_of(self, text: str, start: int, until: str) -> int:
        """Where an answer that begins at `start` ends: with `until`, the text up to there, or else with the
        token that ends it."""
        if text.startswith(until):
            return len(until)
        ends = self._made.library.eos_token or ""
        found = text.find(ends, start) if ends else -1
        return len(text) if found < 0 else found + len(ends)

    @property
    def _made(self) -> _Made:
        return _make(self.name, self.revision, self.added)

    def _asked(
        self, rendered: _Rendered, ids: list[int], before: dict[str, list[int]]
    ) -> tuple[list[int], list[bool]]:
        """The tokens of answers: from the first that lies wholly in one to that which ends it."""
        asked = [False] * len(ids)
        for span in rendered.answers:
            start, end = (_boundary(ids, before[rendered.text[:place]]) for place in span)
            last = next((k for k in range(end - 1, start - 1, -1) if ids[k] == self.eos), end - 1)
            asked[start : last + 1] = [True] * (last + 1 - start)
        return ids, asked


@dataclass(frozen=True)
class _Rendered:
    """A conversation's text, and where in it the assistant writes: [start, end) in characters."""

    text: str
    answers: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokenizer: HuggingFaceTokenizer, messages: Sequence[Message]) -> _Rendered:
        """A template may write an earlier answer otherwise than the last (Qwen3 leaves out its thoughts):
        such an answer goes to the token that ends it. Raises UserError where a text does not begin with its
        prompt."""
        text, spans = tokenizer.render(messages), []
        for k, message in enumerate(messages):
            if message.role != "assistant":
                continue
            start = tokenizer.render(messages[:k], prompt=True)
            end = text if k + 1 == len(messages) else tokenizer.render(messages[: k + 1])
            if not text.startswith(start):
                raise UserError(
                    f"chat template of {tokenizer.name!r}: a conversation does not begin with its prompt, so "
                    f"that nothing says which tokens are its answer: {start[-60:]!r}"
                )
            spans.append((len(start), tokenizer.end_of(text, len(start), end)))
        return cls(text, tuple(spans))


@dataclass(frozen=True)
class _Made:
    """in_parts: whether its chat template takes what is said as a list of parts, as those of vision-language
    models do, and leaves out a plain text without a word"""

    library: Any
    vocabulary: int
    identity: str
    prefix: tuple[int, ...]
    in_parts: bool


@functools.lru_cache(maxsize=8)
def _make(name: str, revision: str | None, added: tuple[str, ...]) -> _Made:
    library = byte_tokenizer() if name == BYTES else decoders.load_tokenizer(_source(name, revision))
    if lacking := [word for word in added if word not in library.get_vocab()]:
        library.add_tokens(lacking, special_tokens=True)
    numbers = library.get_vocab()
    plain, whole = library(_PROBE, add_special_tokens=False).input_ids, library(_PROBE).input_ids
    begins = next((k for k in range(len(whole)) if whole[k : k + len(plain)] == plain), 0)
    return _Made(
        library,
        1 + max(numbers.values()),
        _identity(library, numbers),
        tuple(whole[:begins]),
        library.chat_template is not None and not _says(library, False) and _says(library, True),
    )


def _turn(message: Message, in_parts: bool) -> dict[str, Any]:
    """One side's words as a template takes them."""
    said = [{"type": "text", "text": message.content}] if in_parts else message.content
    return {"role": message.role, "content": said}


def _says(library: Any, in_parts: bool) -> bool:
    """Whether its chat template writes what is said in this form."""
    try:
        text = library.apply_chat_template([_turn(Message("user", _SAID), in_parts)], tokenize=False)
    except Exception:  # whatever a template raises
        return False
    return _SAID in text


def _source(name: str, revision: str | None) -> Source:
    """A tokenizer needs no model beside it."""
    path = Path(name).expanduser()
    if path.is_file():
        return Source(text=name, file=path)
    return (
        Source(text=name, folder=path) if path.is_dir() else Source(text=name, repo=name, revision=revision)
    )


def _identity(library: Any, numbers: dict[str, int]) -> str:
    """Of what its numbers depend on: words, rules, the token that ends a text, and the chat template."""
    # a call without padding and truncation has taken out of them what a file may say of these
    rules = library.backend_tokenizer.to_str() if library.is_fast else ""
    template = of_text(library.chat_template)
    said = [sorted(numbers.items()), rules, library.eos_token, library.bos_token, template]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _numbers(library: Any, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = library(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    ).input_ids
    return found


def _boundary(ids: list[int], before: list[int]) -> int:
    """How many of a text's tokens begin before a place in it, by the tokens of the text up to there: a token
    that lies on both sides begins before."""
    same = next((k for k, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), None)
    if same is None:
        return min(len(ids), len(before))
    return same + 1


def language_preprocessing(name: str, config: Any, revision: str | None = None) -> TextOnly | None:
    """Of a language model of transformers: the tokenizer beside it, unread until it is used; None where a
    folder holds none.

    name: a folder, an id or a .gguf file; config: the model's
    """
    folder = Path(name).expanduser()
    if not name or (folder.is_dir() and not any((folder / file).is_file() for file in _FILES)):
        return None
    context = getattr(config, "max_position_embeddings", None)
    return TextOnly(HuggingFaceTokenizer(name, context, None if folder.exists() else revision))
