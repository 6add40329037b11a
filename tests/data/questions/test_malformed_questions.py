"""Numbers, texts and splits of another kind than a format has are told in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from question_files import content, scienceqa, vqav2

from transmamba.config.registry import QUESTIONS
from transmamba.errors import UserError

DATA = {"train": content("train")}


def refused(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        QUESTIONS[name](**options).build("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "name", "value", "says"),
    [
        ("questions", "question_id", [1], r"questions 0 has question_id \[1\], no number or text"),
        ("questions", "image_id", None, "question 0 has the image_id None, which picture"),
        ("questions", "image_id", {"a": 1}, "question 0 has the image_id .*, which picture"),
        ("annotations", "question_id", {}, r"annotations 0 has question_id \{\}, no number or text"),
        ("annotations", "answers", [{"answer": {}}], r"answers: \{\} is no answer"),
    ],
)
def test_vqa_s_numbers_of_another_kind_are_told_in_a_line(
    part: str, name: str, value: Any, says: str, tmp_path: Path
) -> None:
    options = vqav2(tmp_path, DATA)
    (path,) = tmp_path.glob(f"v2*train2014_{part}.json")
    found = json.loads(path.read_text())
    found[part][0][name] = value
    path.write_text(json.dumps(found))
    refused("vqav2", options, says)


@pytest.mark.parametrize(
    ("value", "says"),
    [(None, "split 'train' is None, no list"), ({"1": 2}, r"split 'train' is \{'1': 2\}, no list")],
)
def test_scienceqa_s_split_that_is_no_list_is_told_in_a_line(value: Any, says: str, tmp_path: Path) -> None:
    options = scienceqa(tmp_path, DATA)
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": value}))
    refused("scienceqa", options, says)


@pytest.mark.parametrize("name", ["lecture", "solution", "hint", "question"])
def test_scienceqa_s_texts_of_another_kind_are_told_in_a_line(name: str, tmp_path: Path) -> None:
    options = scienceqa(tmp_path, DATA)
    path = tmp_path / "problems.json"
    found = json.loads(path.read_text())
    found["2"][name] = 3
    path.write_text(json.dumps(found))
    refused("scienceqa", options, "problem 2: [a-z]+: 3 is no text; write text")
