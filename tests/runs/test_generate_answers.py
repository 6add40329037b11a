"""`transmamba generate-data --questions`: what a LLaVA answers, and the reader `answered`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_llava import llava_folder

from transmamba.cli.main import main
from transmamba.config.registry import QUESTIONS
from transmamba.data.questions.answered import AnsweredQuestions
from transmamba.data.text.appended import about_of
from transmamba.ecosystems.find import load_model
from transmamba.ecosystems.language_tokenizer import HuggingFaceTokenizer
from transmamba.errors import UserError
from transmamba.runs import generate_answers as generate_answers_module
from transmamba.runs.evaluate import prepare
from transmamba.runs.generate_answers import Answering, _Prompts, _Writer, generate_answers
from transmamba.tasks.questions import QuestionsConfig

COUNT = 16


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, and inclined to end what it writes."""
    folder = llava_folder(tmp_path_factory.mktemp("llava"), context=400)
    model: Any = load_model(folder)
    heads: list[Any] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, given: heads.append(given[0].flatten(0, 1)))
    torch.manual_seed(0)
    with torch.no_grad():
        model(input_ids=torch.randint(3, 300, (8, 40)))
        handle.remove()
        usual, mean = model.lm_head.weight.norm(dim=1).mean(), heads[0].mean(dim=0)
        model.lm_head.weight[2] = 1.2 * usual * mean / mean.norm()
    model.save_pretrained(folder)
    return folder


def scenes(**more: Any) -> Any:
    return QUESTIONS["scenes"](side=32, count_train=COUNT, count_test=4, **more)


def on_disk(folder: Path) -> Any:
    """The training questions, their pictures in `images`."""
    images = folder / "images"
    images.mkdir()
    lines = []
    for number, item in enumerate(map(scenes().build("train").item, range(COUNT))):
        item.images()[0].save(images / f"{number}.png")
        row = {"question": item.question, "answers": item.answers, "choices": item.choices}
        lines.append({**row, "image": f"{number}.png"})
    table = folder / "questions.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)))
    return QUESTIONS["jsonl"](train=str(table), images=str(images))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_what_the_model_says_of_the_training_questions(llava: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "answers.jsonl", scenes()
    written = generate_answers(llava, out, data, Answering(batch_size=5))
    rows = {row["index"]: row for row in rows_of(out)}
    assert 2 <= len(rows) == written.texts < COUNT and written.left_out == COUNT - len(rows)
    # an independent way there: the same questions as a test split, answered by the evaluator
    tested = QUESTIONS["scenes"](
        side=32, count_test=COUNT, count_train=4, split_test="train", split_train="test"
    )
    config = QuestionsConfig(data=tested, controls=(), lookup=0)
    answers = prepare(str(llava), config, batch_size=4).measure().outcomes[0]["student"].answers
    source = data.build("train")
    for number, row in rows.items():
        item = source.item(number)
        assert row["question"] == item.question
        if not item.choices:
            assert row["answer"] == answers.said[number]
        else:
            assert row["answer"] in item.choices
    read = AnsweredQuestions(data=data, answers=str(out)).build("train")
    assert len(read) == len(rows)
    for place, number in enumerate(sorted(rows)):
        mine, theirs = read.item(place), source.item(number)
        assert mine.answers == (rows[number]["answer"],) and mine.rationale is None
        assert mine.question == theirs.question
        assert np.array_equal(np.asarray(mine.images()[0]), np.asarray(theirs.images()[0]))
    own_test = AnsweredQuestions(data=data, answers=str(out)).build("test")
    assert own_test.item(0).answers == data.build("test").item(0).answers


def test_each_prompt_is_tokenised_once(llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are not looked at first (all but 6) some say in the file which questions it is of."""
    asked: list[str] = []
    plain = HuggingFaceTokenizer.encode
    monkeypatch.setattr(
        HuggingFaceTokenizer, "encode", lambda self, texts: asked.extend(texts) or plain(self, texts)
    )
    questions = [scenes().build("train").item(number).question for number in range(COUNT)]
    for tried, again in ((256, 0), (6, COUNT - 6)):
        monkeypatch.setattr(generate_answers_module, "_TRIED", tried)
        asked.clear()
        generate_answers(llava, tmp_path / f"{tried}.jsonl", scenes(), Answering(batch_size=4))
        found = [text for text in asked if any(question in text for question in questions)]
        assert len(set(found)) == len(set(questions)) and len(found) == COUNT + again
    assert (tmp_path / "6.jsonl").read_bytes() == (tmp_path / "256.jsonl").read_bytes()


def test_an_interrupted_call_is_gone_on_with_to_the_same_bytes(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    generate_answers(llava, whole, scenes(), Answering(batch_size=4))

    def stop(starts: Any, title: str) -> Any:
        for number, start in enumerate(starts):
            if number == 1:
                raise KeyboardInterrupt
            yield start

    with pytest.raises(KeyboardInterrupt):
        generate_answers(llava, torn, scenes(), Answering(batch_size=4), watch=stop)
    assert not torn.exists()
    with pytest.raises(UserError, match="is not whole yet"):
        AnsweredQuestions(data=scenes(), answers=str(torn)).build("train")
    with pytest.raises(UserError, match="was begun with"):
        generate_answers(llava, torn, scenes(), Answering(batch_size=4, seed=3))
    generate_answers(llava, torn, scenes(), Answering(batch_size=4))
    assert torn.read_bytes() == whole.read_bytes()
    assert generate_answers(llava, torn, scenes(), Answering(batch_size=4)).already


def test_a_file_of_other_questions_is_refused(llava: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    generate_answers(llava, out, scenes(), Answering(documents=8))
    with pytest.raises(UserError, match="give it the options that it had then"):
        AnsweredQuestions(data=scenes(seed=5), answers=str(out)).build("train")
    more = QUESTIONS["scenes"](side=32, count_train=COUNT + 1, count_test=4)
    with pytest.raises(UserError, match=f"is of {COUNT} questions, the reader has {COUNT + 1}"):
        AnsweredQuestions(data=more, answers=str(out)).build("train")
    with pytest.raises(UserError, match="is not there"):
        AnsweredQuestions(data=scenes(), answers=str(tmp_path / "none.jsonl")).build("train")


@pytest.mark.parametrize(
    "change",
    [{"index": "x"}, {"index": COUNT}, {"question": 3}, {"answer": None}, {"rationale": {"why": "so"}}],
)
def test_a_row_that_was_not_written_so_is_told_in_a_line(change: Any, tmp_path: Path) -> None:
    data, out = scenes(), tmp_path / "answers.jsonl"
    row = {"index": 0, "question": data.build("train").item(0).question, "answer": "red"}
    out.write_text(json.dumps({**row, **change}))
    about: dict[str, Any] = {"parts": 1, "bytes": 0, "finished": True, "counts": {"texts": 1}}
    about_of(out).write_text(json.dumps({**about, "made": {"of": COUNT}}))
    with pytest.raises(UserError, match=f"line 1: is no answer to one of {COUNT} questions"):
        AnsweredQuestions(data=data, answers=str(out)).build("train")


def test_reasons_are_learned_where_they_were_given(llava: Path, tmp_path: Path) -> None:
    """Of an answer in stages, each stage is kept; one without stages is left out."""
    said = "<SUMMARY> look </SUMMARY>\n\n<REASONING> it is red </REASONING>\n\n<CONCLUSION> red </CONCLUSION>"
    config = QuestionsConfig(data=scenes(), rationales=True)
    from transmamba.ecosystems.find import preprocessing_of

    built = config.build_training(preprocessing_of(load_model(llava)))
    runner: Any = None
    writer = _Writer(runner, _Prompts(built.source("train"), built.asking, 400))
    item = next(
        item
        for item in (built.source("train").item(k) for k in range(COUNT))
        if not item.choices and item.answers[0] not in ("yes", "no", "true", "false")
    )
    record = writer._record(item, built.asking.tokenizer.encode([said])[0])
    assert record is not None and record["answer"] == "red"
    assert record["rationale"] == {"summary": "look", "caption": "", "reasoning": "it is red"}
    assert writer._record(item, built.asking.tokenizer.encode(["red"])[0]) is None


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--questions", "scenes", "--temperature", "0.5"], "--temperature does not go with questions"),
        (["--prompts", "text", "--rationales"], "--rationales goes with --questions"),
    ],
)
def test_options_of_the_other_kind_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate-data", "model", "out.jsonl", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_of_a_multiple_choice_the_choice_is_learned_that_was_named(llava: Path) -> None:
    from transmamba.ecosystems.find import preprocessing_of

    built = QuestionsConfig(data=scenes()).build_training(preprocessing_of(load_model(llava)))
    runner: Any = None
    writer = _Writer(runner, _Prompts(built.source("train"), built.asking, 16))
    item = next(item for item in (built.source("train").item(k) for k in range(COUNT)) if item.choices)
    for said, wanted in (("B", item.choices[1]), (item.choices[2], item.choices[2])):
        assert writer._record(item, built.asking.tokenizer.encode([said])[0]) == {"answer": wanted}
    assert writer._record(item, built.asking.tokenizer.encode(["nothing of these"])[0]) is None


def test_questions_without_room_are_refused_first_or_left_out(
    llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first ones leave no room nothing is begun; a later one is left out."""
    out = tmp_path / "answers.jsonl"
    with pytest.raises(
        UserError, match=r"question \d+: its \d+ tokens and its answer of 380 are more than the 400"
    ):
        generate_answers(llava, out, scenes(), Answering(tokens=380))
    assert not list(tmp_path.iterdir())

    whole = generate_answers(llava, tmp_path / "whole.jsonl", scenes(), Answering(batch_size=4))
    long = max(row["index"] for row in rows_of(tmp_path / "whole.jsonl"))
    prompt = _Prompts.of

    def fitting(self: _Prompts, number: int) -> list[int]:
        if number == long:
            raise UserError("it leaves no room")
        return prompt(self, number)

    monkeypatch.setattr(_Prompts, "of", fitting)
    monkeypatch.setattr(generate_answers_module, "_TRIED", 0)
    found = generate_answers(llava, out, scenes(), Answering(batch_size=4))
    assert (found.texts, found.left_out) == (whole.texts - 1, whole.left_out + 1)
    wanted = [row for row in rows_of(tmp_path / "whole.jsonl") if row["index"] != long]
    assert rows_of(out) == wanted


def test_a_question_whose_picture_does_not_decode_is_left_out(
    llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted, as training bears it; the others are answered as without it, whoever is stopped between."""
    images, data = tmp_path / "images", on_disk(tmp_path)
    whole = generate_answers(llava, tmp_path / "whole.jsonl", data, Answering(batch_size=4))
    rows = rows_of(tmp_path / "whole.jsonl")
    answered = {row["index"] for row in rows}
    bad = max(answered)
    (images / f"{bad}.png").write_bytes((images / f"{bad}.png").read_bytes()[:40])

    out, torn = tmp_path / "bad.jsonl", tmp_path / "torn.jsonl"
    found = generate_answers(llava, out, data, Answering(batch_size=4))
    assert (found.texts, found.left_out) == (whole.texts - 1, whole.left_out + 1)
    assert rows_of(out) == [row for row in rows if row["index"] != bad]
    assert f"question {bad} is left out: " in caplog.text and f"{bad}.png" in caplog.text

    def stop(starts: Any, title: str) -> Any:
        for number, start in enumerate(starts):
            if number == 2:
                raise KeyboardInterrupt
            yield start

    with pytest.raises(KeyboardInterrupt):
        generate_answers(llava, torn, data, Answering(batch_size=4), watch=stop)
    again = generate_answers(llava, torn, data, Answering(batch_size=4))
    assert (again.texts, again.left_out) == (found.texts, found.left_out)
    assert torn.read_bytes() == out.read_bytes()
    alone = generate_answers(llava, tmp_path / "one.jsonl", data, Answering(batch_size=1))
    assert (alone.texts, alone.left_out) == (found.texts, found.left_out), "a batch of it alone"


def test_pictures_none_of_which_decodes_are_refused_and_many_are_not_named_each(
    llava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = on_disk(tmp_path), tmp_path / "out" / "answers.jsonl"
    out.parent.mkdir()
    files = sorted((tmp_path / "images").iterdir())
    for path in files[1:]:
        path.write_bytes(path.read_bytes()[:40])
    monkeypatch.setattr(generate_answers_module, "_NAMED", 3)
    written = generate_answers(llava, out, data, Answering(batch_size=4))
    assert written.left_out >= COUNT - 1
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 4 and all(line.startswith("question ") for line in said[:3])
    assert said[3] == f"{COUNT - 4} more questions are left out: their pictures do not decode"

    files[0].write_bytes(files[0].read_bytes()[:40])
    with pytest.raises(UserError, match=rf"of the first {COUNT} questions no picture decodes; .*\.png"):
        generate_answers(llava, out.parent / "none.jsonl", data, Answering(batch_size=4))
    assert not list(out.parent.glob("none*"))
