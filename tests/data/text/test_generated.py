"""Benchmarks that are answered in writing: what is asked, and which answers are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_language import write_jsonl

from transmamba.config.registry import GENERATED
from transmamba.data.text import counted
from transmamba.data.text.generated import final_number, plain
from transmamba.errors import UserError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 18.", "18"),
        ("2 + 3 = 5 apples", "5"),
        ("so #### 1,234", "1234"),
        ("#### $70,000.00 in 3 years", "70000"),
        ("#### 3\n\nQuestion 4: 5", "3"),
        ("first #### 2 then #### 9", "9"),
        ("7 in all ####", "7"),
        ("-$3.50", "-3.5"),
        ("10-3", "3"),
        ("from 5 to -2", "-2"),
        ("half: .5", "0.5"),
        ("007", "7"),
        ("1, 2, and 3, they say", "3"),
        ("none", None),
    ],
)
def test_the_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_names_are_compared_as_triviaqa_s_authors_do() -> None:
    assert plain("The  Beatles!") == plain("beatles") == "beatles"
    assert plain("a_man, AN apple") == "man apple" and plain("Theo") == "theo"


def gsm8k(folder: Path, **options: Any) -> Any:
    rows = [
        {"question": f"What is {n}+1?", "answer": f"It is <<{n}+1={n + 1}>>.\n#### {n + 1}"} for n in range(9)
    ]
    write_jsonl(folder / "test.jsonl", rows)
    return GENERATED["gsm8k"](path=str(folder), **options)


def test_gsm8k(tmp_path: Path) -> None:
    asked = gsm8k(tmp_path).build()
    assert len(asked) == 9 and asked[4].prompt == "Question: What is 4+1?\nAnswer:" and asked[4].label == "5"
    answers = {"4+1=5": True, "#### 5.0": True, "It is 5, not 6": False, "five": False, "": False}
    assert {text: asked[4].judge(text) for text in answers} == {k: (v,) for k, v in answers.items()}
    few, again = (gsm8k(tmp_path, items=4).build() for _ in range(2))
    assert [a.prompt for a in few] == [a.prompt for a in again] and len({a.prompt for a in few}) == 4


def test_triviaqa(tmp_path: Path) -> None:
    row = {"context": "Question: Who?\nAnswer:", "answer": "The Beatles", "aliases": ["Fab Four", "St. Beat"]}
    (asked,) = GENERATED["triviaqa"](path=write_jsonl(tmp_path / "t.jsonl", [row])).build()
    right = [" beatles", "Fab Four.\n\nQuestion: What?", "the fab-four, of course", "St. Beat"]
    wrong = ["", "It was the Beatles", "Rolling Stones\nBeatles", "beat", "."]
    assert all(asked.judge(text) == (True,) for text in right)
    assert all(asked.judge(text) == (False,) for text in wrong)


def test_ifeval(tmp_path: Path) -> None:
    row = {
        "prompt": "Say it without commas, in 3 words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"num_words": None}, {"num_words": 3, "relation": "at least"}],
    }
    (asked,) = GENERATED["ifeval"](path=write_jsonl(tmp_path / "i.jsonl", [row])).build()
    assert asked.parts == tuple(row["instruction_id_list"])
    assert asked.judge("one two three") == (True, True) and asked.judge("one, two") == (False, False)
    row["instruction_id_list"] = ["punctuation:no_coma", "length_constraints:number_words"]
    path = write_jsonl(tmp_path / "i.jsonl", [row])
    with pytest.raises(
        UserError, match=r"i.jsonl: line 1: unknown kind of instruction 'punctuation:no_coma'"
    ):
        GENERATED["ifeval"](path=path).build()


def test_languages_need_langdetect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"prompt": "x", "instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}
    path = write_jsonl(tmp_path / "i.jsonl", [row])
    monkeypatch.setattr(counted.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs langdetect: pip install 'transmamba\[eval\]'"):
        GENERATED["ifeval"](path=path).build()


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("gsm8k", {"question": "a", "answer": "no number"}, "line 1: the answer has no number after ####"),
        ("gsm8k", {"question": "a"}, "line 1: is no question of gsm8k"),
        ("triviaqa", {"context": "a", "answer": 1, "aliases": []}, "line 1: is no question of triviaqa"),
        ("ifeval", {"prompt": "a", "instruction_id_list": [], "kwargs": []}, "has no instructions"),
    ],
)
def test_files_of_something_else_are_refused(
    name: str, row: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        GENERATED[name](path=write_jsonl(tmp_path / "x.jsonl", [row])).build()
    with pytest.raises(UserError):
        GENERATED[name](path=str(tmp_path / "nowhere.jsonl")).build()


def test_the_authors_files_are_read_and_their_own_answers_are_right(shared_data: Path) -> None:
    folder = shared_data / "lm_bench"
    maths = GENERATED["gsm8k"](path=str(folder / "gsm8k")).build()
    lines = (folder / "gsm8k" / "test.jsonl").read_text().splitlines()
    assert len(maths) == 1319
    for asked, line in zip(maths, lines, strict=True):
        assert asked.judge(json.loads(line)["answer"]) == (True,)
    trivia = GENERATED["triviaqa"](path=str(folder / "triviaqa_sub"), items=500).build()
    assert len(trivia) == 500 and all(
        asked.judge(f" {asked.label}\n\nQuestion:") == (True,) for asked in trivia
    )
