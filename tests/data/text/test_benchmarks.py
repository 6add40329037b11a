"""Benchmark files as they lie at their authors', and their prompts as the harness writes them."""

from __future__ import annotations

import bz2
import json
import random
from pathlib import Path
from typing import Any

import pytest

from transmamba.config.registry import BENCHMARKS
from transmamba.data.text.benchmarks import Question
from transmamba.errors import UserError


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read(name: str, path: Path, **options: Any) -> list[Question]:
    found: list[Question] = BENCHMARKS[name](path=str(path), **options).build(None)
    return found


def test_piqa(tmp_path: Path) -> None:
    rows = [
        dict(goal="Open a tin.", sol1="Opener ", sol2="Teeth"),
        dict(goal="Sleep", sol1="Run", sol2="Bed"),
    ]
    written(tmp_path / "valid.jsonl", *rows)
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    assert read("piqa", tmp_path) == [
        Question("Question: Open a tin.\nAnswer:", ("Opener ", "Teeth"), 0),
        Question("Question: Sleep\nAnswer:", ("Run", "Bed"), 1),
    ]
    (tmp_path / "valid-labels.lst").write_text("0\n")
    with pytest.raises(UserError, match="has 2 questions, but there are 1 labels"):
        read("piqa", tmp_path)


def test_hellaswag_of_its_authors_is_cleaned_as_the_harness_does(tmp_path: Path) -> None:
    row = dict(
        activity_label="Cooking",
        ctx_a="A man stirs. [header] How [title] Stir",
        ctx_b="he  then",
        endings=["sits. ", "eats [substeps] it.", "x", "y"],
        label=1,
    )
    expected = Question("Cooking: A man stirs. How. Stir He then", ("sits.", "eats it.", "x", "y"), 1)
    assert read("hellaswag", written(tmp_path / "val.jsonl", row)) == [expected]


def test_hellaswag_as_text(tmp_path: Path) -> None:
    text = "Cooking: He\n2\na\nb\nc\nd\nRun: She\n0\ne\nf\ng\nh\n"
    (tmp_path / "all.txt.bz2").write_bytes(bz2.compress(text.encode()))
    expected = [Question("Cooking: He", ("a", "b", "c", "d"), 2), Question("Run: She", tuple("efgh"), 0)]
    assert read("hellaswag", tmp_path) == expected
    (tmp_path / "all.txt.bz2").write_bytes(bz2.compress(text.replace("She\n", "She\n\n").encode()))
    with pytest.raises(UserError, match=r"all.txt.bz2:7: here six lines should make a question"):
        read("hellaswag", tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        dict(query="Question: Why?", choices=["a", "b"], gold=1),
        dict(
            question=dict(stem="Why?", choices=[dict(text="a", label="A"), dict(text="b", label="B")]),
            answerKey="B",
        ),
    ],
    ids=["rows", "authors"],
)
def test_arc_easy(row: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "arc.jsonl", row)
    assert read("arc_easy", path) == [Question("Question: Why?\nAnswer:", ("a", "b"), 1)]


@pytest.mark.parametrize(
    "row", [dict(text="He saw\u2028a sign"), dict(context="He saw\u2028a", continuation="sign")]
)
def test_lambada(row: dict[str, Any], tmp_path: Path) -> None:
    assert read("lambada", written(tmp_path / "l.jsonl", row)) == [Question("He saw\u2028a", ("sign",))]


def test_a_draw_is_always_the_same(tmp_path: Path) -> None:
    path = written(tmp_path / "l.jsonl", *(dict(text=f"word {n}") for n in range(50)))
    drawn = [question.choices[0] for question in read("lambada", path, items=7)]
    assert drawn == [str(n) for n in random.Random(0).sample(range(50), 7)]
    assert len(read("lambada", path, items=900)) == 50
    with pytest.raises(UserError, match="items is 0; write a number of questions"):
        BENCHMARKS["lambada"](path=str(path), items=0)


def test_what_is_no_benchmark_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected one file \*.jsonl, found none; write its path"):
        read("arc_easy", tmp_path)
    path = written(tmp_path / "a.jsonl", dict(query="q", choices=["a"], gold=0), dict(other=1))
    with pytest.raises(UserError, match=r"a.jsonl:2: is no question of arc_easy \(KeyError"):
        read("arc_easy", path)
    written(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match=r"found a.jsonl, b.jsonl; write its path"):
        read("lambada", tmp_path)
    with pytest.raises(UserError, match="has no questions"):
        read("lambada", tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read("lambada", tmp_path / "c.jsonl")
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"b.jsonl:1: is no JSON"):
        read("lambada", tmp_path / "b.jsonl")


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "count", "choices"),
    [("piqa", 1838, {2}), ("hellaswag", 10042, {4}), ("arc_easy", 2376, {4}), ("lambada", 5153, {1})],
)
def test_the_real_files_are_whole(name: str, count: int, choices: set[int], shared_data: Path) -> None:
    questions = read(name, shared_data / "lm_bench" / name)
    assert len(questions) == count and {len(question.choices) for question in questions} == choices
    assert all(0 <= question.answer < len(question.choices) for question in questions)
    rights = {question.answer for question in questions}
    assert len(rights) == max(choices), "no place is always right"
    assert all(all(question.choices) and question.context for question in questions)
