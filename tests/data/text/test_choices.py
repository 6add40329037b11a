"""Questions with choices made of other data, and a few of them to train on."""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_language import reading, write_jsonl

from transmamba.config.load import Part
from transmamba.config.registry import BENCHMARKS, TEXTS
from transmamba.data.kept import Kept
from transmamba.data.pairs.captions import LeftOut
from transmamba.data.text import few_questions
from transmamba.data.text.benchmarks import Question
from transmamba.data.text.cache import tokenised
from transmamba.data.text.source import Completion
from transmamba.errors import UserError, WrongValues
from transmamba.evaluation.requests import encoded


def asked(name: str, **options: Any) -> list[Question]:
    found: list[Question] = Part(BENCHMARKS)._build({"name": name, **options}).build(None)
    return found


# --- where questions come from ---

ROWS = [
    ("What is wet?\nA. water\nB. sand", "A. water", "x"),
    ("Two lines\nof a question?\nA. one\nB. two\nC. three", "C", "x"),
    ("Of another source\nA. one\nB. two", "B. two", "y"),
    ("No options", "A. water", "x"),
    ("B first\nB. one\nC. two", "B. one", "x"),
    ("No such letter\nA. one\nB. two", "C. three", "x"),
    ("A word\nA. one\nB. two", "Apples", "x"),
    ("Twice\nA. one\nB. one", "A. one", "x"),
]


def test_options_are_taken_from_a_prompt_s_last_lines(tmp_path: Path) -> None:
    rows = [dict(zip(("prompt", "response", "source"), row, strict=True)) for row in ROWS]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    assert asked("lettered_options", files=str(path), source="x") == [
        Question("Question: What is wet?\nAnswer:", ("water", "sand"), 0),
        Question("Question: Two lines\nof a question?\nAnswer:", ("one", "two", "three"), 2),
    ]
    assert len(asked("lettered_options", files=str(path))) == 3
    with pytest.raises(UserError, match="no row has a prompt with lettered options"):
        asked("lettered_options", files=str(path), source="z")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    words = [f"w{number}" for number in range(300)]
    rows = [
        {
            "text": " \n".join([["cats", "dogs"][k % 2], *words, str(k)]),
            "source": f"{['cat', 'dog'][k % 2]}:{k}",
        }
        for k in range(30)
    ]
    rows.append({"text": "too short", "source": "cat:x"})
    path = tmp_path / "c.jsonl.xz"
    path.write_bytes(lzma.compress("\n".join(map(json.dumps, rows)).encode()))
    return str(path)


def test_a_kind_of_text_is_told_by_a_stretch_of_it(corpus: str) -> None:
    kinds = {"feline": ["cat:"], "canine": ["dog:"]}
    found = asked("kinds_of_texts", files=corpus, kinds=kinds, each=10, characters=50)
    assert len(found) == 20 and {question.choices for question in found} == {("feline", "canine")}
    assert sum(question.answer for question in found) == 10
    for question in found:
        stretch = question.context.removesuffix("\n\nThis text is about:")
        assert len(stretch) <= 50 and re.fullmatch(r"(cats |dogs )?(w\d+ )*(w\d+|\d+)", stretch)
    assert len({question.context for question in found}) > 15, "stretches lie anywhere"
    with pytest.raises(UserError, match=r"kinds: no source in .* begins with cow:"):
        asked("kinds_of_texts", files=corpus, kinds={**kinds, "cow": ["cow:"]})
    with pytest.raises(WrongValues, match="kinds has fewer than two"):
        BENCHMARKS["kinds_of_texts"](files=corpus, kinds={"a": ("cat:",)})


def test_a_list_says_what_stands_behind_its_key() -> None:
    found = asked("key_value_choices", pairs=5, items=200)
    for question in found:
        *lines, empty, last = question.context.split("\n")
        table = dict(line.split(": ") for line in lines)
        assert not empty and len(table) == 5 and set(table.values()) == set(question.choices)
        assert table[last.removesuffix(":")] == question.choices[question.answer]
    assert np.bincount([question.answer for question in found]).min() > 20
    assert len({question.context for question in found}) == 200
    assert asked("key_value_choices", items=3, seed=1) != asked("key_value_choices", items=3)


# --- a few of them ---

OF = {"name": "key_value_choices", "items": 40, "pairs": 3}


def few(**options: Any) -> tuple[set[str], set[str], set[str]]:
    """Contexts that are trained on, of the reader's test split, and that are measured."""
    reader = Part(TEXTS)._build({"name": "few_questions", "of": OF, **options})
    documents = [list(reader.build(split).documents(LeftOut())) for split in ("train", "test")]
    trained, test = ({document.before for document in part} for part in documents)
    return trained, test, {question.context for question in asked("few_questions", of=OF, **options)}


def test_what_is_measured_is_not_trained_on() -> None:
    every = {question.context for question in asked(**OF)}
    trained, test, measured = few(train=20, test=15)
    assert (len(trained), len(test)) == (20, 15) and test == measured and not trained & test
    less, held, asked_ = few(train=20, test=15, held_out=5)
    assert (len(less), len(held)) == (15, 5) and held == asked_
    assert less | held == trained, "what is held out is of those that are trained on afterwards"
    assert trained | few(train=20, test=None)[1] == every
    assert few(train=20, test=15, seed=1)[0] != trained


def test_questions_that_are_kept_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_questions, "_KEPT", Kept(16))
    reads: list[Any] = []
    kind = BENCHMARKS["key_value_choices"]
    build = kind.build
    monkeypatch.setattr(kind, "build", lambda self, tokenizer: reads.append(self) or build(self, tokenizer))
    fresh = few(train=20, test=15)
    assert len(reads) == 3, "two splits and the benchmark"
    assert few(train=20, test=15, keep=True) == fresh and len(reads) == 4
    assert few(train=20, test=15, keep=True, seed=1)[0] != fresh[0] and len(reads) == 4
    few(train=20, test=15)
    assert len(reads) == 7
    other = {**OF, "pairs": 4}
    asked("few_questions", of=other, train=20, keep=True)
    assert len(reads) == 8, "other questions are not taken for these"


def test_the_answer_alone_is_learned_as_it_is_scored(tmp_path: Path) -> None:
    """Tokens and their asked part are those of the likelihood of the right choice."""
    for bos in (False, True):
        tokenizer = reading(tmp_path / str(bos), bos=bos).text
        reader = Part(TEXTS)._build({"name": "few_questions", "of": OF, "train": 20})
        made = tokenised(reader.build("train"), tokenizer, str(tmp_path / "cache"))
        questions = reader.questions("train")
        wanted = encoded([(q.context, f" {q.choices[q.answer]}") for q in questions], tokenizer, "x")
        assert len(made) == 20 and made.answers is not None
        for number, request in enumerate(wanted):
            part = slice(*made.bounds[number : number + 2])
            assert made.tokens[part].tolist() == request.ids
            assert np.flatnonzero(made.answers[part]).tolist() == list(range(request.start, len(request.ids)))


BAD = {
    "kind": ({"of": {"name": "key_value", "items": 3}}, "key_value has no questions with choices"),
    "few": ({"train": 40}, "train is 40, but key_value_choices has 40 questions; leave some to test"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_taken_apart_is_said(name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(UserError, match=message):
        asked("few_questions", **{"of": OF, **given})
    with pytest.raises(WrongValues, match="held_out is 20; write 0, or fewer than train"):
        TEXTS["few_questions"](of=BENCHMARKS["key_value_choices"](), train=20, held_out=20)


def test_a_completion_is_a_document_of_two_parts() -> None:
    reader = Part(TEXTS)._build({"name": "few_questions", "of": OF, "train": 2})
    for document, question in zip(
        reader.build("train").documents(LeftOut()), reader.questions("train"), strict=True
    ):
        assert document == Completion(question.context, f" {question.choices[question.answer]}")
