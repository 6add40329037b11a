"""What is particular to each published format of questions, and what is refused or left out in it."""

from __future__ import annotations

import gzip
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from question_files import content, draw, easy_vqa, gqa, lines, nlvr, scienceqa, vqav2, write, zipped

from transmamba.config.registry import QUESTIONS
from transmamba.core.text import Message
from transmamba.data.questions.source import Item, QuestionSource
from transmamba.data.staged import Rationale
from transmamba.errors import UserError

DATA = {"train": content("train")}


def built(name: str, split: str = "train", **options: Any) -> QuestionSource:
    source: QuestionSource = QUESTIONS[name](**options).build(split)
    return source


def items(source: QuestionSource) -> list[Item]:
    return [source.item(number) for number in range(len(source))]


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps(edit(found) or found))


# --- jsonl ---


def test_a_row_may_say_more_than_a_question(tmp_path: Path) -> None:
    for number in range(2):
        draw(tmp_path / f"{number}.png", number)
    stages = "<CAPTION> Two. </CAPTION>\n\n<REASONING> Look. </REASONING>"
    rows = [
        {"question": "1 + 1?", "answer": 2},
        {
            "question": "which?",
            "answers": ["a", "b"],
            "choices": ["a", "b", "c"],
            "image": ["0.png", "1.png"],
        },
        {"question": "why?", "answers": ["so"] * 10, "rationale": "Because.", "type": "reason"},
        {"question": "how?", "answers": "so", "rationale": stages, "image": ""},
        {"question": "when?", "answers": "now", "rationale": {"summary": "I think.", "reasoning": "It is."}},
    ]
    found = items(built("jsonl", train=str(lines(tmp_path / "q.jsonl", rows))))
    assert found[0] == Item(question="1 + 1?", answers=("2",))
    assert found[1].answers == ("a", "b") and found[1].choices == ("a", "b", "c")
    assert [int(np.asarray(image)[0, 0, 0]) for image in found[1].images()] == [0, 1]
    assert found[2] == Item(
        question="why?", answers=("so",) * 10, rationale=Rationale(reasoning="Because."), type="reason"
    )
    assert found[3].rationale == Rationale(caption="Two.", reasoning="Look.") and not found[3].pictures
    assert found[4].rationale == Rationale(summary="I think.", reasoning="It is.")


def test_lines_may_be_compressed_and_in_several_files(tmp_path: Path) -> None:
    draw(tmp_path / "pictures" / "p.png", 7)
    for number in range(2):
        row = {"question": f"number {number}?", "answer": "yes", "image": "p.png"}
        with gzip.open(tmp_path / f"q-{number}.jsonl.gz", "wt") as file:
            file.write(json.dumps(row))
    everywhere = {"train": str(tmp_path / "q-*.jsonl.gz"), "images": str(tmp_path / "pictures")}
    assert [item.question for item in items(built("jsonl", **everywhere))] == ["number 0?", "number 1?"]
    archive = zipped(tmp_path / "pictures", "pictures.zip")
    assert built("jsonl", **everywhere | {"images": str(archive)}).item(1).images()[0].size == (5, 5)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "why?", "answer": "so", "rationale": 3}, "rationale: 3 is no rationale"),
        ({"question": "why?", "answer": "so", "rationale": {"why": ""}}, "is no rationale; write a text, or"),
        ({"question": 3, "answer": "so"}, "question: 3 is no text; write text"),
        ({"question": "why?", "answer": "so", "image": 3}, "image: 3 is no path"),
        ({"question": "why?", "answer": "so", "image": "x" * 5000}, "none of its 1 pictures is in"),
        ({"text": "why?"}, "no column 'question'"),
    ],
)
def test_a_row_of_another_form_is_refused_by_its_line(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", [row])
    with pytest.raises(UserError, match=rf"q\.jsonl: .*{says}"):
        built("jsonl", train=str(path))


# --- VQA v2 ---


def test_vqa_s_ten_answers_stay_in_order_with_the_kind_of_answer(tmp_path: Path) -> None:
    options = vqav2(tmp_path, DATA)
    item = built("vqav2", **options).item(1)
    assert item.answers == ("no",) * 7 + ("perhaps", "perhaps", "blue") and item.type == "yes/no"
    assert built("vqav2", **options, types="question").item(1).type == "is"


def test_vqa_s_questions_and_annotations_are_joined_by_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = vqav2(tmp_path, DATA)
    change(
        tmp_path / "v2_mscoco_train2014_annotations.json",
        lambda found: found["annotations"][0].update(question_id=99),
    )
    source = built("vqav2", **options)
    assert [item.question for item in items(source)] == [asked.question for asked in DATA["train"][:3]]
    assert "1 without an answer (first: question 3)" in caplog.text
    assert "1 whose question is not in the file of questions (first: question_id 99)" in caplog.text
    assert source.skipped == 2


def test_vqa_in_another_form_is_refused(tmp_path: Path) -> None:
    options = vqav2(tmp_path, DATA)
    with pytest.raises(UserError, match=r"picture 'COCO_\{name\}' cannot be filled in"):
        built("vqav2", **options, picture="COCO_{name}")
    with pytest.raises(
        UserError, match=r"no list 'questions', only info, .*annotations; expected VQA's files"
    ):
        built("vqav2", **options, train_questions="v2_mscoco_train2014_annotations.json")
    with pytest.raises(UserError, match=r"val2014_questions\.json does not exist"):
        built("vqav2", "test", **options)
    annotations = tmp_path / "v2_mscoco_train2014_annotations.json"
    change(annotations, lambda found: found["annotations"][0].update(answers=["yes"] * 10))
    with pytest.raises(UserError, match="has answers of another form"):
        built("vqav2", **options)
    change(annotations, lambda found: found["annotations"].append(found["annotations"][1]))
    with pytest.raises(UserError, match="several annotations are of one question_id"):
        built("vqav2", **options)


# --- GQA ---


def test_gqa_s_types_are_chosen_and_its_questions_may_lie_in_several_files(tmp_path: Path) -> None:
    options = gqa(tmp_path, DATA)
    assert {item.type for item in items(built("gqa", **options))} == {"verify"}
    assert built("gqa", **options, types="semantic").item(0).type == "obj"
    path = tmp_path / "train_balanced_questions.json"
    found = json.loads(path.read_text())
    for number, key in enumerate(found):
        write(tmp_path / "train_all_questions" / f"train_all_questions_{number}.json", {key: found[key]})
    several = built("gqa", **options, train="train_all_questions/*.json")
    assert [item.question for item in items(several)] == [asked.question for asked in DATA["train"]]


def test_gqa_without_answers_is_left_out_and_another_form_refused(tmp_path: Path) -> None:
    options = gqa(tmp_path, DATA)
    path = tmp_path / "train_balanced_questions.json"
    change(path, lambda found: [record.pop("answer") for record in found.values()] and None)
    with pytest.raises(UserError, match="holds no questions: 4 without an answer"):
        built("gqa", **options)
    write(path, {"1": {"question": "why?"}})
    with pytest.raises(UserError, match="question 1 has no 'imageId', only question; expected GQA's"):
        built("gqa", **options)
    write(path, [1])
    with pytest.raises(UserError, match="a list; expected GQA's files"):
        built("gqa", **options)


# --- ScienceQA ---


def test_scienceqa_has_choices_hints_and_reasons(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = scienceqa(tmp_path, DATA)

    def edit(problems: dict[str, Any]) -> None:
        problems["1"] |= {"hint": "Think of two.", "image": None}
        problems["2"] |= {"lecture": "", "solution": ""}
        problems["3"] |= {"answer": 2}

    change(tmp_path / "problems.json", edit)
    one, two, three = items(built("scienceqa", **options))
    assert one.question == f"Think of two.\n{DATA['train'][0].question}" and not one.pictures
    assert one.choices == ("no", "yes") and one.answers == ("yes",) and one.type == "natural science"
    assert one.rationale == Rationale(reasoning="Numbers are even or odd.\nHence yes.")
    assert two.rationale is None and len(two.pictures) == 1 and three.answers == ("no",)
    assert "1 without an answer (first: problem 3)" in caplog.text


def test_scienceqa_s_splits_are_those_of_its_file(tmp_path: Path) -> None:
    options = scienceqa(tmp_path, DATA)
    with pytest.raises(UserError, match="no split 'test'"):
        built("scienceqa", "test", **options)
    change(tmp_path / "pid_splits.json", lambda found: found.update(minitest=["4", "77"]))
    with pytest.raises(UserError, match="no problem 77"):
        built("scienceqa", "test", **options, test_split="minitest")
    change(tmp_path / "pid_splits.json", lambda found: found.update(minitest=["4"]))
    (item,) = items(built("scienceqa", "test", **options, test_split="minitest"))
    assert item.question == DATA["train"][3].question


# --- LLaVA ---


def said(*turns: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]


def test_a_conversation_is_its_turns_in_order(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 3)
    rows = [
        {"id": "1", "image": "a.png", "conversations": said("<image>\nwhat?", "a dog", "which?", "that one")},
        {"id": "2", "conversations": [{"from": "system", "value": "be kind"}, *said("hello", "hi", "bye")]},
        {"id": "3", "images": ["a.png"], "conversations": said("what\n<image>", "grey")},
    ]
    one, two, three = items(built("llava", train=str(write(tmp_path / "llava.json", rows))))
    assert one.earlier == (Message("user", "what?"), Message("assistant", "a dog"))
    assert (one.question, one.answers, len(one.images())) == ("which?", ("that one",), 1)
    assert two.earlier == (Message("system", "be kind"),) and two.question == "hello"
    assert two.answers == ("hi",) and two.pictures == ()
    assert (three.question, three.earlier, len(three.images())) == ("what", (), 1)


def test_marks_are_counted_over_all_turns(tmp_path: Path) -> None:
    for name in "ab":
        draw(tmp_path / f"{name}.png", 3)
    turns = said("<image>\nwhat?", "a dog", "<image>\nand now?", "a cat")
    rows = [{"image": ["a.png", "b.png"], "conversations": turns}, {"image": "a.png", "conversations": turns}]
    (item,) = items(source := built("llava", train=str(lines(tmp_path / "llava.jsonl", rows))))
    assert item.earlier[0].content == "<image>\nwhat?" and item.question == "<image>\nand now?"
    assert source.skipped == 1


def test_conversations_without_an_answer_are_left_out(tmp_path: Path, caplog: Any) -> None:
    rows = [{"conversations": turns} for turns in ([], said("hello"), said("hello", " "), said("a", "b"))]
    rows.append({"conversations": said("a", "b")[1:]})
    source = built("llava", train=str(write(tmp_path / "llava.json", rows)))
    assert len(source) == 1 and "4 without an answer (first: record 0)" in caplog.text
    for broken, says in (
        (3, "conversations is 3"),
        ([{"from": "cat", "value": ""}], "turn 0: .* is no turn"),
    ):
        path = write(tmp_path / "broken.json", [{"conversations": broken}])
        with pytest.raises(UserError, match=rf"broken\.json: record 0.*{says}"):
            built("llava", train=str(path))


def test_answers_in_stages_are_taken_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reasons = Rationale(summary="I look.", caption="A dog.", reasoning="It barks.")
    rows = [
        {"conversations": said("who?", reasons.written("a dog"), "sure?", reasons.written("yes"))},
        {"conversations": said("who?", "a dog")},
        {"conversations": said("who?", reasons.written("").strip())},
    ]
    (item,) = items(built("llava_cot", train=str(lines(tmp_path / "train.jsonl", rows))))
    assert item.answers == ("yes",) and item.rationale == reasons and item.question == "sure?"
    assert item.earlier[1] == Message("assistant", reasons.written("a dog"))
    assert "2 whose answer is not in stages, or without a conclusion (first: line 2)" in caplog.text


# --- easy-VQA and NLVR ---


def test_easy_vqa_may_lie_in_a_zip(tmp_path: Path) -> None:
    options = easy_vqa(tmp_path / "data", DATA)
    (tmp_path / "data" / "answers.txt").write_text("yes\nno\n")
    archive = zipped(tmp_path / "data", "data.zip")
    for number, (one, two) in enumerate(
        zip(items(built("easy_vqa", **options)), items(built("easy_vqa", path=str(archive))), strict=True)
    ):
        assert (one.question, one.answers, one.type) == (two.question, two.answers, "yes/no")
        assert two.images()[0].getpixel((0, 0)) == (DATA["train"][number].colour,) * 3
    with pytest.raises(UserError, match=r"data\.zip: test/questions\.json cannot be read"):
        built("easy_vqa", "test", path=str(archive))
    write(tmp_path / "data" / "train" / "questions.json", [["why?", "so"]])
    with pytest.raises(UserError, match=r"record 0 is \['why\?', 'so'\]; expected easy-VQA's data"):
        built("easy_vqa", **options)


def test_a_statement_may_be_asked_of_several_of_its_pictures(tmp_path: Path) -> None:
    options = nlvr(tmp_path, DATA)
    found = items(built("nlvr", **options, permutations=3))
    assert [item.question for item in found[:4]] == [DATA["train"][n].question for n in (0, 0, 0, 1)]
    first = DATA["train"][0].colour
    assert [item.images()[0].getpixel((0, 0))[0] for item in found[:3]] == [first, first + 1, first + 2]
    with pytest.raises(UserError, match="permutations 7: write 1 to 6"):
        built("nlvr", **options, permutations=7)


def test_statements_may_be_compressed_or_in_a_zip_with_an_index(tmp_path: Path) -> None:
    path = Path(nlvr(tmp_path / "nlvr", DATA)["train"])
    expected = [(item.question, item.answers) for item in items(built("nlvr", train=str(path)))]
    packed = path.with_suffix(".json.xz")
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert [(i.question, i.answers) for i in items(built("nlvr", train=str(packed)))] == expected
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    index = [
        {"sentence": row["sentence"], "label": row["label"] == "true", "images": [f"{n}.png"]}
        for n, row in enumerate(rows)
    ]
    for number in range(len(rows)):
        draw(tmp_path / "flat" / f"{number}.png", number)
    write(tmp_path / "flat" / "index.json", [*index, {"sentence": "?", "label": None, "images": ["0.png"]}])
    source = built("nlvr", train=str(zipped(tmp_path / "flat", "flat.zip")))
    assert [(item.question, item.answers) for item in items(source)] == expected and source.skipped == 1
    write(tmp_path / "flat" / "index.json", [{"sentence": "?"}])
    with pytest.raises(UserError, match=r"record 0 of index\.json has no list 'images'"):
        built("nlvr", train=str(zipped(tmp_path / "flat", "flat.zip")))


@pytest.mark.shared_data
def test_easy_vqa_itself(shared_data: Path) -> None:
    path = str(shared_data / "easy_vqa" / "easy_vqa.zip")
    source = built("easy_vqa", "test", path=path)
    assert len(source) == 9673 and source.skipped == 0
    counts = Counter(item.type for item in items(source))
    assert counts["yes/no"] == 7136  # as its README says
    assert len({answer for item in items(source) for answer in item.answers}) == 13
    assert source.item(9672).images()[0].size == (64, 64)


@pytest.mark.shared_data
def test_nlvr_itself(shared_data: Path) -> None:
    source = built("nlvr", "test", test=str(shared_data / "nlvr" / "dev.zip"))
    assert len(source) == 989 and source.skipped == 0
    assert Counter(item.answers[0] for item in items(source)) == {"true": 547, "false": 442}
    assert source.item(988).images()[0].size == (400, 100)
