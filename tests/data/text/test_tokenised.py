"""Tokens are made once: whole or not at all, by one process of several, anew when anything changes."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_language import TEXTS, reading

from transmamba.core.text import LanguageTokenizer, Message
from transmamba.data.pairs.captions import LeftOut
from transmamba.data.text.cache import tokenised
from transmamba.data.text.source import Document
from transmamba.data.text.tokenised import BOUNDS, TOKENS, Tokenised
from transmamba.errors import UserError

TALKS = tuple((Message("user", text), Message("assistant", text[::-1])) for text in TEXTS)


@dataclass
class Given:
    """Documents in memory that are counted when they are read. A `TextSource`."""

    given: tuple[Document, ...] = TEXTS
    stamp: str = "one"
    pause: float = 0.0
    where: str = "memory"
    reads: list[int] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        return not isinstance(self.given[0], str)

    def documents(self, left_out: LeftOut) -> Iterator[Document]:
        self.reads.append(os.getpid())
        for number, document in enumerate(self.given):
            time.sleep(self.pause)
            if document == "stop":
                raise KeyboardInterrupt
            if document:
                yield document
            else:
                left_out.add("without text", f"document {number}")


@pytest.fixture
def tokenizer(tmp_path: Path) -> LanguageTokenizer:
    return reading(tmp_path / "tokenizer").text


def plainly(tokenizer: Any, texts: tuple[str, ...] = TEXTS) -> list[list[int]]:
    return [[*tokenizer.prefix, *tokenizer.encode([text])[0], tokenizer.eos] for text in texts]


def documents_of(texts: Tokenised) -> list[list[int]]:
    return [part.tolist() for part in np.split(texts.tokens, texts.bounds[1:-1])]


def test_texts_are_begun_and_ended(tmp_path: Path, tokenizer: LanguageTokenizer) -> None:
    source, cache = Given(), str(tmp_path / "cache")
    first = tokenised(source, tokenizer, cache)
    assert documents_of(first) == plainly(tokenizer)
    assert first.tokens.dtype == np.uint16 and first.answers is None and len(first) == len(TEXTS)
    again = pickle.loads(pickle.dumps(tokenised(source, tokenizer, cache)))
    assert documents_of(again) == documents_of(first) and len(source.reads) == 1
    begun = reading(tmp_path / "begun", bos=True).text
    other = documents_of(tokenised(source, begun, cache))
    assert other == plainly(begun) and len(source.reads) == 2
    assert all(document[0] == begun.prefix[0] for document in other)
    assert documents_of(tokenised(Given(stamp="two", given=("new",)), tokenizer, cache)) == plainly(
        tokenizer, ("new",)
    )


@dataclass(frozen=True)
class Large:
    """A tokenizer of more words than 16 bits number."""

    context, eos, prefix, vocabulary, identity = None, 69_999, (), 70_000, "large"

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[65_536 + len(text)] for text in texts]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    found = tokenised(Given(given=("a", "bc")), Large(), str(tmp_path))  # type: ignore[arg-type]
    assert documents_of(found) == [[65_537, 69_999], [65_538, 69_999]] and found.tokens.dtype == np.uint32


def test_answers_of_conversations(tmp_path: Path, tokenizer: LanguageTokenizer) -> None:
    found = tokenised(Given(given=TALKS), tokenizer, str(tmp_path / "cache"))
    assert found.answers is not None
    for talk, (ids, asked), start in zip(TALKS, tokenizer.chat(TALKS), found.bounds, strict=False):
        there = slice(int(start), int(start) + len(ids))
        assert found.tokens[there].tolist() == ids and found.answers[there].tolist() == asked
        assert tokenizer.decode(found.tokens[there][found.answers[there]]) == f"{talk[1].content}<|im_end|>"


def test_an_answer_that_its_template_does_not_end_is_ended(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    plain = reading(tmp_path / "plain", template=template).text
    found = tokenised(Given(given=TALKS[:1]), plain, str(tmp_path / "cache"))
    assert found.answers is not None and found.tokens[-1] == plain.eos and found.answers[-1]
    assert plain.decode(found.tokens[found.answers]) == f"{TALKS[0][1].content}\n<|im_end|>"


def test_an_interrupted_making_leaves_nothing(tmp_path: Path, tokenizer: LanguageTokenizer) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        tokenised(Given(given=(*TEXTS, "stop")), tokenizer, str(cache))
    assert [path for path in cache.iterdir() if not path.name.endswith(".lock")] == []
    source = Given()
    found = tokenised(source, tokenizer, str(cache))
    assert documents_of(found) == plainly(tokenizer) and len(source.reads) == 1
    for name, change in (
        (TOKENS, lambda b: b[:-1]),
        (BOUNDS, lambda b: b[:8]),
        ("about.json", lambda b: b"{"),
    ):
        path = found.folder / name
        path.write_bytes(change(path.read_bytes()))
        found = tokenised(source, tokenizer, str(cache))
        assert documents_of(found) == plainly(tokenizer), name
    assert len(source.reads) == 4


def make(folder: str, pause: float, answers: Any) -> None:
    source = Given(pause=pause)
    found = tokenised(source, Large(), folder)  # type: ignore[arg-type]
    answers.put((len(source.reads), documents_of(found)))


def lengthy() -> list[list[int]]:
    return [[65_536 + len(text), 69_999] for text in TEXTS]


def test_a_killed_process_is_cleaned_up_after(tmp_path: Path) -> None:
    context, cache = multiprocessing.get_context("fork"), tmp_path / "cache"
    child = context.Process(target=make, args=(str(cache), 60.0, context.SimpleQueue()))
    child.start()
    while not (cache.is_dir() and list(cache.glob(".*.partial"))):
        assert child.is_alive()
        time.sleep(0.02)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert list(cache.glob(".*.partial"))
    found = tokenised(Given(), Large(), str(cache))  # type: ignore[arg-type]
    assert documents_of(found) == lengthy() and not list(cache.glob(".*.partial"))


@pytest.mark.parametrize("locks", [True, False])
def test_of_two_processes_one_makes_them(
    locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks both may, and neither is disturbed."""
    if not locks:
        monkeypatch.setattr("transmamba.data.text.cache._locked", lambda descriptor: False)
    context = multiprocessing.get_context("fork")
    cache = str(tmp_path / "cache")
    answers = [context.SimpleQueue() for _ in range(2)]
    children = [context.Process(target=make, args=(cache, 0.05, queue)) for queue in answers]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    found = [queue.get() for queue in answers]
    assert not locks or sorted(reads for reads, _ in found) == [0, 1]
    assert all(documents == lengthy() for _, documents in found)
    assert not list(Path(cache).glob(".*.partial"))


def test_what_is_left_out_is_said_each_time(
    tmp_path: Path, tokenizer: LanguageTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    source = Given(given=("a", "", "b", ""))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="transmamba.data"):
            assert len(tokenised(source, tokenizer, str(tmp_path / "cache"))) == 2
        assert "memory: left out 2 documents: 2 without text (first: document 1)" in caplog.text
    for _ in range(2):
        with pytest.raises(UserError, match=r"^memory: holds no documents: 1 without text \(first: document"):
            tokenised(Given(given=("",), stamp="none"), tokenizer, str(tmp_path / "cache"))


def test_where_nothing_can_be_written(tmp_path: Path, tokenizer: LanguageTokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"^memory: its tokens cannot be kept in .*; write task\.cache: FOLDER$"
    ):
        tokenised(Given(), tokenizer, str(tmp_path / "file" / "below"))
    bare = reading(tmp_path / "bare", eos=False).text
    with pytest.raises(UserError, match="has no token that ends a text"):
        tokenised(Given(), bare, str(tmp_path / "cache"))


def test_the_user_s_cache_is_used_by_default(tokenizer: LanguageTokenizer) -> None:
    found = tokenised(Given(), tokenizer)
    assert found.folder.parent == Path(os.environ["XDG_CACHE_HOME"]) / "transmamba" / "tokens"
    assert json.loads((found.folder / "about.json").read_text())["documents"] == len(TEXTS)
