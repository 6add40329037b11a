"""Every reader of questions keeps the contract of a `QuestionSource`, in its published layout."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from question_files import LAYOUTS, SPLITS, content, draw

from transmamba.config.registry import QUESTIONS
from transmamba.data.pairs.stored import Folder
from transmamba.data.questions.source import Item, QuestionSource
from transmamba.data.questions.stored import Gathered
from transmamba.errors import UserError


@pytest.fixture(params=["scenes", *LAYOUTS])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "scenes":
        return QUESTIONS["scenes"](side=16, count_train=4, count_test=4)
    (tmp_path / "data").mkdir()
    options = LAYOUTS[request.param](tmp_path / "data", {split: content(split) for split in SPLITS})
    return QUESTIONS[request.param](**options)


def items(source: QuestionSource) -> list[Item]:
    return [source.item(number) for number in range(len(source))]


def worded(item: Item) -> Item:
    """Without its pictures, which are equal only where they come from one place."""
    return dataclasses.replace(item, pictures=())


def shown(item: Item) -> list[bytes]:
    return [np.asarray(image).tobytes() for image in item.images()]


def test_every_reader_is_tried() -> None:
    # what `answered` reads is made by a model: tests/runs/test_generate_answers.py
    assert set(QUESTIONS) == {"scenes", "answered", *LAYOUTS}


@pytest.mark.parametrize("split", SPLITS)
def test_a_source_is_questions_with_answers_in_an_order_that_stays(reader: Any, split: str) -> None:
    source = reader.build(split)
    assert len(source) == 4 and source.skipped == 0
    found = items(source)
    assert list(map(worded, found)) == list(map(worded, items(reader.build(split))))
    for number, item in enumerate(found):
        assert isinstance(item.answers, tuple) and item.answers and all(item.answers)
        assert "<image>" not in item.question and item.question.strip() == item.question != ""
        assert not item.choices or set(item.answers) <= set(item.choices)
        assert len(item.pictures) == 1 and len(item.images()) == 1
        if reader.name != "scenes":
            expected = content(split)[number]
            assert item.question == expected.question
            said = {"yes": "true", "no": "false"} if reader.name == "nlvr" else {"yes": "yes", "no": "no"}
            assert item.answers[0] == said[expected.answer]
            assert (np.asarray(item.images()[0].convert("RGB")) == expected.colour).all()
    with pytest.raises(IndexError):
        source.item(4)


def test_a_source_reaches_a_process_that_is_not_forked(reader: Any) -> None:
    source = reader.build("train")
    before = [shown(item) for item in items(source)]
    again = pickle.loads(pickle.dumps(source))
    assert list(map(worded, items(again))) == list(map(worded, items(source)))
    assert [shown(item) for item in items(again)] == before


def test_the_splits_differ_and_there_are_two(reader: Any) -> None:
    questions = [{(item.question, *shown(item)) for item in items(reader.build(split))} for split in SPLITS]
    assert not questions[0] & questions[1]
    with pytest.raises(UserError, match="split 'dev': a data reader has the splits 'train' and 'test'"):
        reader.build("dev")


@pytest.mark.parametrize("name", ["jsonl", "llava", "llava_cot", "nlvr"])
def test_a_split_that_was_not_given_is_asked_for(name: str) -> None:
    with pytest.raises(UserError, match="has neither train nor test"):
        QUESTIONS[name]()
    with pytest.raises(UserError, match="was given no test split"):
        QUESTIONS[name](train="here.json").build("test")


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_there_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    key = {"easy_vqa": "path"}.get(name, "root" if name in ("gqa", "scienceqa", "vqav2") else "train")
    with pytest.raises(UserError, match=r"gone\.json"):
        QUESTIONS[name](**{key: str(tmp_path / "gone.json")}).build("train")


@pytest.mark.parametrize("name", LAYOUTS)
def test_pictures_that_are_missing_are_left_out_and_without_any_it_is_refused(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = LAYOUTS[name](tmp_path, {"train": content("train")})
    reader = QUESTIONS[name](**options)
    pictures = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg"))
    each = len(pictures) // 4
    for path in pictures[:each]:  # those of one question
        path.unlink()
    source = reader.build("train")
    assert len(source) == 3 and source.skipped == 1
    assert "left out 1 questions: 1 whose picture is not there (first: " in caplog.text
    for path in pictures[each:]:
        path.unlink()
    with pytest.raises(UserError, match="is in"):
        reader.build("train")


@pytest.mark.parametrize("name", LAYOUTS)
def test_pictures_that_do_not_decode_are_named(name: str, tmp_path: Path) -> None:
    reader = QUESTIONS[name](**LAYOUTS[name](tmp_path, {"train": content("train", 1)}))
    source = reader.build("train")
    for path in tmp_path.rglob("*"):
        if path.suffix in (".png", ".jpg"):
            path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"\.(png|jpg): does not decode as an image"):
        source.item(0).images()


# --- what every reader of files passes through ---


@pytest.fixture
def gathered(tmp_path: Path) -> Gathered:
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
    return Gathered("file")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (("  ", "yes"), "without a question"),
        ((None, "yes"), "without a question"),
        (("<image>", "yes", ("0.png",)), "without a question"),
        (("why?", ""), "without an answer"),
        (("why?", None), "without an answer"),
        (("why?", ["", " "]), "without an answer"),
        (("<image> why?", "so"), "with another number of <image> than of pictures"),
        (("<image><image> why?", "so", ("0.png",)), "with another number of <image> than of pictures"),
        (("why?", "so", ("gone.png", "0.png")), "whose picture is not there"),
    ],
)
def test_what_cannot_be_asked_is_counted_by_its_reason(
    fields: tuple[Any, ...], reason: str, gathered: Gathered, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gathered.add("line 1", *fields)
    gathered.add("line 2", "and this?", "yes", ("1.png",))
    source = gathered.build(Folder(tmp_path))
    assert len(source) == 1 and source.skipped == 1 and source.item(0).question == "and this?"
    assert f"file: left out 1 questions: 1 {reason} (first: " in caplog.text


def test_an_answer_that_is_no_choice_is_unknown(gathered: Gathered, tmp_path: Path) -> None:
    gathered.add("line 1", "which?", "red", choices=["blue", "green"])
    with pytest.raises(UserError, match="file: holds no questions: 1 whose answer is none of their choices"):
        gathered.build(Folder(tmp_path))


def test_without_pictures_none_are_looked_for(gathered: Gathered) -> None:
    gathered.add("line 1", "two and two?", 4)
    source = gathered.build(None)
    assert source.item(0).answers == ("4",) and source.item(0).images() == []


@pytest.mark.parametrize("answer", [True, {"a": 1}, [["yes", {}]]])
def test_what_is_no_answer_is_refused(answer: Any, gathered: Gathered) -> None:
    with pytest.raises(UserError, match="file: line 1: answers: "):
        gathered.add("line 1", "why?", answer)


def test_one_of_ten_people_may_have_said_nothing(gathered: Gathered) -> None:
    gathered.add("line 1", "why?", ["so", "", *["so"] * 8])
    assert gathered.build(None).item(0).answers == ("so", "", *["so"] * 8)


@pytest.mark.parametrize(
    ("asked", "pictures", "left"),
    [
        ("<image>\nwhy?", 1, "why?"),
        ("why?\n<image>", 1, "why?"),
        ("<image> <image>\nwhich?", 2, "which?"),
        ("is <image> like <image>?", 2, "is <image> like <image>?"),
        ("<image> or\n<image>", 2, "<image> or\n<image>"),
        ("in <image>, why?", 1, "in <image>, why?"),
        ("why?", 2, "why?"),
    ],
)
def test_marks_stay_where_they_say_more_than_that_pictures_come_first(
    asked: str, pictures: int, left: str, gathered: Gathered, tmp_path: Path
) -> None:
    gathered.add("line 1", asked, "so", tuple(f"{n}.png" for n in range(pictures)))
    item = gathered.build(Folder(tmp_path)).item(0)
    assert item.question == left and len(item.images()) == pictures
