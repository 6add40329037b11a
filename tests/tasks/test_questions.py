"""The task `questions`: its splits and streams, what it refuses, and models that write about pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked_items import Listed, item
from PIL import Image
from small_language import llama_folder, write_jsonl
from small_llava import PATCHES, SIDE, llava_folder

import transmamba
from transmamba import UserError
from transmamba.cli.main import main
from transmamba.config import load as configs
from transmamba.config.registry import TASKS
from transmamba.core.preprocessing import PicturesAndText
from transmamba.core.task import Pass, Steps, Task
from transmamba.data.questions.asked import Asking, Style
from transmamba.data.questions.batches import AskedQuestions, EvalQuestions
from transmamba.data.stream import load
from transmamba.errors import ConfigError
from transmamba.evaluation.language import LanguageEvaluator
from transmamba.evaluation.questions import AnswersEvaluator
from transmamba.evaluation.run import ModelRunner, measure
from transmamba.losses.cross_entropy import CrossEntropy
from transmamba.tasks.questions import STAGED, Questions

TOKENS = 6
SCENES = dict(name="scenes", side=SIDE, count_train=60, count_test=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_folder(tmp_path_factory.mktemp("llava"), context=512)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Any:
    return transmamba.load_teacher(folder)


def config_of(**values: Any) -> Any:
    return configs.parse(TASKS["questions"], {"data": SCENES, **values}, "task")


def task_of(teacher: Any, **values: Any) -> Questions:
    made: Questions = config_of(**values).build(teacher.preprocessing)
    return made


def same(a: Any, b: Any) -> bool:
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- streams ---


def test_a_stream_that_begins_later_is_the_rest_of_it(teacher: Any) -> None:
    task = task_of(teacher)
    assert isinstance(task, Task) and task.num_train == 60

    def steps(**changes: Any) -> Steps:
        return Steps(**{**dict(micro_batch=4, accumulation=2, seed=3, num_steps=9), **changes})

    whole = list(task.train_batches(steps()))
    assert len({tuple(batch.index.tolist()) for batch in whole}) == 18
    rest = list(task_of(teacher).train_batches(steps(start_step=5, num_steps=4, workers=1)))
    assert len(rest) == 8 and all(map(same, whole[10:], rest))
    # the same items on two ranks: of a step's four micro-batches two each
    ranks = [list(task.train_batches(steps(micro_batch=2, world=2, rank=rank))) for rank in range(2)]
    for one, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert one.index.tolist() == [n for part in parts for n in part.index.tolist()]
    assert not same(whole[0], next(task.train_batches(steps(seed=4))))
    pairs = np.stack([np.zeros(4, np.int64), np.arange(4)], axis=1)
    assert same(task.train_source(1).batch(pairs), task.train_source(2).batch(pairs))


def test_splits_and_fractions_are_those_of_other_tasks(teacher: Any) -> None:
    task = task_of(teacher, validation=0.2, fraction=0.5, watched_questions=5, final_split="test")
    held, kept = set(task.indices("validation").tolist()), set(task.indices("train").tolist())
    assert len(held) == 12 and len(kept) == 24 and not held & kept
    assert (task.watched, task.final) == ("validation", "test")
    watched, final = task.asked("validation"), task.asked("test")
    assert len(watched) == 5 and set(watched.tolist()) < held and len(final) == 20
    kinds = [[type(each).__name__ for each in task.evaluators(split)] for split in ("validation", "test")]
    assert kinds[0] == ["AnswersEvaluator", "LanguageEvaluator"]
    assert kinds[1] == [*kinds[0], "ControlEvaluator", "ControlEvaluator"]
    assert "lookup_accuracy" not in [metric.key for metric in task.evaluators("validation")[0].metrics]
    keys = [metric.key for metric in task.metrics]
    assert keys[0] == "accuracy" and {"kl", "lookup_accuracy", "question_control"} <= set(keys)
    assert [metric.key for metric in task.metrics if metric.headline] == ["accuracy"]
    few = task_of(teacher, controls=["blank"], lookup=0)
    assert [each.metrics[0].key for each in few.evaluators("test")[2:]] == ["blank_control"]
    assert "lookup_accuracy" not in [metric.key for metric in few.metrics]
    seen = [batch.index.tolist() for batch in task.eval_batches("test", Pass(batch_size=6))]
    assert [n for part in seen for n in part] == list(range(20)) and list(task.look_through()) == []


def test_calibration_is_what_is_trained_on(teacher: Any) -> None:
    task = task_of(teacher, fraction=0.5)
    batches = list(task.calibration(10, 4))
    index = [n for batch in batches for n in batch.index.tolist()]
    assert len(set(index)) == 10 and set(index) <= set(task.train_indices.tolist())
    assert index != sorted(index), "of all of them, not of one end"
    learned = EvalQuestions(task.source("train"), task.asking)
    assert all(same(batch, learned.batch(batch.index.numpy())) for batch in batches)


def test_losses_and_likelihoods_are_those_of_the_answers_alone(teacher: Any, folder: Path) -> None:
    """Against transformers' own model and labels, row by row."""
    from transformers import AutoModelForImageTextToText

    task = task_of(teacher, data=dict(SCENES, count_test=6))
    batch = next(task.eval_batches("test", Pass(batch_size=6)))
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    nats, words = [], 0
    for row in range(6):
        real = batch.inputs["text_mask"][row]
        text, wanted = batch.inputs["text"][row][real], batch.targets["tokens"][row][real]
        labels = torch.cat([torch.tensor([-100]), wanted])
        picture = batch.inputs["image"][batch.inputs["image_row"] == row]
        with torch.no_grad():
            whole = torch.cat([text, wanted[-1:]])[None]
            made = model(input_ids=whole, pixel_values=picture, labels=labels[None])
        nats.append(float(made.loss) * int((wanted >= 0).sum()))
        words += int((wanted >= 0).sum())
    evaluator = next(each for each in task.evaluators("test") if isinstance(each, LanguageEvaluator))
    outcome = _outcomes(evaluator, {"teacher": teacher})["teacher"]
    assert outcome.metrics["nats_per_token"] == pytest.approx(sum(nats) / words, rel=1e-4)
    assert CrossEntropy().build(None).item(batch) == "answers" and batch.counts["answers"] == words


def _outcomes(evaluator: Any, models: dict[str, Any], batch_size: int = 4) -> Any:
    from transmamba.evaluation.run import ModelRunner, measure

    runners = {name: ModelRunner(each, torch.device("cpu"), kind="teacher") for name, each in models.items()}
    (found,) = measure([evaluator], runners, Pass(batch_size=batch_size)).outcomes
    return found


def test_a_control_exchanges_the_question_or_the_picture_and_nothing_else(teacher: Any) -> None:
    """Two types of four items: the pictures tell which item is shown, the prompts which is asked."""
    items = [
        item(f"{kind} {n}?", answer=str(n), pictures=[40 * n + 10 * len(kind)], type=kind)
        for n in range(4)
        for kind in ("a", "bb")
    ]
    task = task_of(teacher, controls=["question", "picture", "blank"], lookup=0)
    task._sources["test"] = Listed(items)
    transform = reads_of(teacher).pictures.eval_transform()
    prompts = [task.asking.prompt(each) for each in items]
    pictures = [transform(each.images()[0]) for each in items]
    for evaluator in task.evaluators("test"):
        kind = evaluator.metrics[0].key.partition("_")[0]
        if isinstance(evaluator, LanguageEvaluator):
            continue
        batches = list(evaluator.batches(Pass(batch_size=3)))
        index = [n for batch in batches for n in batch.index.tolist()]
        assert index == list(range(8))
        text = [row[real].tolist() for b in batches for row, real in _texts(b)]
        asked = [prompts.index(row) for row in text]
        shown = [
            next((n for n, each in enumerate(pictures) if torch.equal(each, picture)), None)
            for batch in batches
            for picture in batch.inputs["image"]
        ]
        moved = {"question": asked, "picture": shown}
        for name, of in moved.items():
            if name == kind:
                assert all(a != n and a % 2 == n % 2 for n, a in enumerate(of)), "another of its type"
                assert sorted(of) == index, "each once"
            elif not (name == "picture" and kind == "blank"):
                assert of == index
        if kind == "blank":
            assert all(not batch.inputs["image"].any() for batch in batches)


def _texts(batch: Any) -> Any:
    return zip(batch.inputs["text"], batch.inputs["text_mask"], strict=True)


# --- writing ---

ROWS = [
    item("one two three?", pictures=[20]),
    item("what?", pictures=[40, 250]),
    item("the <image> cat sat on the <image> mat, and the <image>?", pictures=[1, 2, 3]),
    item("no picture at all"),
]


@torch.no_grad()
def slowly(model: Any, ids: list[int], pictures: Any, ends: set[int]) -> list[int]:
    """Greedily without a cache, one word after another, until one of `ends`."""
    seen = {"pixel_values": pictures} if len(pictures) else {}
    new: list[int] = []
    while len(new) < TOKENS and not ends & set(new):
        logits = model(input_ids=torch.tensor([[*ids, *new]]), use_cache=False, **seen).logits
        new.append(int(logits[0, -1].argmax()))
    return new


def test_a_batch_writes_what_each_of_its_rows_does_and_stops_row_by_row(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    reads = transmamba.load_teacher(folder).preprocessing
    asking, every = Asking(reads, Style(), 200), np.arange(len(ROWS))
    batch = AskedQuestions(Listed(ROWS), asking, TOKENS, every, every, every).batch(every)
    assert batch.counts["pictures"] == 6 and not batch.inputs["text_mask"].all()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    alone = []
    for row in range(len(ROWS)):
        ids = batch.inputs["text"][row][batch.inputs["text_mask"][row]].tolist()
        assert ids.count(reads.image_token) == PATCHES * len(ROWS[row].pictures)
        alone.append((ids, batch.inputs["image"][batch.inputs["image_row"] == row]))
    free = [slowly(model, *each, set()) for each in alone]
    # a word that one row says early and another late or never, and which ends a text from now on
    (end,) = [word for word in free[1] if free[1].index(word) == 1][:1]
    model.generation_config.eos_token_id = [end]
    model.save_pretrained(tmp_path)
    for file in [*folder.glob("*token*"), folder / "preprocessor_config.json"]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    wanted = [slowly(model, *each, {end, reads.text.eos}) for each in alone]
    assert len({len(each) for each in wanted}) > 1 and len({tuple(each) for each in wanted}) == len(ROWS)
    loaded = transmamba.load_teacher(tmp_path)
    held = transmamba.adapt_teacher(AutoModelForImageTextToText.from_pretrained(tmp_path))
    for made in (loaded, held):
        written = made.generate(batch.inputs, TOKENS)
        assert written.shape == (len(ROWS), max(map(len, wanted)))
        for row, words in enumerate(wanted):
            assert written[row].tolist() == words + [end] * (written.shape[1] - len(words))


def test_answers_are_judged_as_they_are_written(folder: Path, teacher: Any) -> None:
    """By transformers' model alone, and without the picture where there is none to be seen."""
    from transformers import AutoModelForImageTextToText

    task = task_of(teacher, data=dict(SCENES, count_test=5), answer_tokens=TOKENS, controls=["blank"])
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    answers, _, control = task.evaluators("test")
    assert isinstance(answers, AnswersEvaluator)
    said = {
        each: _outcomes(each, {"teacher": teacher})["teacher"].answers.said for each in (answers, control)
    }
    pictures = reads_of(teacher).pictures.eval_transform()
    for number in range(5):
        asked = task.source("test").item(number)
        seen = pictures(asked.images()[0])[None]
        for evaluator, shown in ((answers, seen), (control, torch.zeros_like(seen))):
            ids = slowly(model, task.asking.prompt(asked), shown, {2})
            assert said[evaluator][number] == task.asking.tokenizer.words(ids).strip()
    assert said[answers] != said[control]
    assert answers.picture is not None
    picture = answers.picture(3)
    assert picture is not None and picture.shape == (SIDE, SIDE, 3)


def reads_of(teacher: Any) -> PicturesAndText:
    found = teacher.preprocessing
    assert isinstance(found, PicturesAndText)
    return found


def questions_file(folder: Path) -> str:
    for n in range(4):
        Image.new("RGB", (SIDE, SIDE), (60 * n, 0, 90)).save(folder / f"{n}.png")
    rows = [
        dict(question="what colour?", answer=("red", "blue")[n % 2], image=f"{n % 4}.png", type="colour")
        for n in range(6)
    ]
    rows += [
        dict(question="<image> or <image>?", answer="one", choices=["one", "two"], image=["0.png", "1.png"]),
        dict(question="what comes after one?", answer="two"),
    ]
    return write_jsonl(folder / "questions.jsonl", rows)


def test_the_command_measures_a_llava_and_its_teacher(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = questions_file(tmp_path)
    words = f"evaluate {folder} --task questions --data jsonl test={file} task.answer_tokens=4 --device cpu"
    assert main([*words.split(), "--teacher", str(folder), "--batch-size", "3", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["student"]["accuracy"] == found["teacher"]["accuracy"]
    assert found["agreement"] == {"same_answer": 100.0} and found["student"]["kl"] == pytest.approx(
        0, abs=1e-6
    )
    assert found["difference"]["accuracy"]["items"] == 8
    assert "lookup_accuracy" not in found["student"], "there is no training split to learn from"
    assert main([*words.split(), f"train={file}", "task.controls=[]"]) == 0
    table = capfd.readouterr().out
    assert "questions alone, by a table" in table and "control" not in table
    assert main(["list", "questions"]) == 0 and "scenes" in capfd.readouterr().out
    assert main([*words.split(), "task.answer_tokens=600"]) == 2
    said = capfd.readouterr().err
    assert "question 0: its" in said and "answer of 600 are more than the 512" in said
    assert main([*words.split(), "task.pictures=hidden"]) == 2
    for labels in ([], ["--labels", "a", "b"]):
        assert main(["predict", str(folder), str(tmp_path / "0.png"), *labels]) == 2
        assert ("answers questions" if not labels else "reads no texts") in capfd.readouterr().err


# --- refusals ---


def test_models_that_do_not_fit_are_refused(teacher: Any, folder: Path, tmp_path: Path) -> None:
    task = task_of(teacher)
    task.check(teacher, "teacher")
    other = llava_folder(tmp_path / "other", strategy="full", context=512)
    with pytest.raises(UserError, match="teacher's tokens of a picture: 5, the data are made for 4"):
        task.check(transmamba.load_teacher(other), "teacher")
    short = llava_folder(tmp_path / "short", context=128)
    with pytest.raises(UserError, match=r"reads at most 128 at once; write task\.context: 128"):
        task.check(transmamba.load_teacher(short), "teacher")
    words = llava_folder(tmp_path / "words", words=280, context=512)
    with pytest.raises(UserError, match="choose models that share"):
        task.check(transmamba.load_teacher(words), "teacher")
    language = transmamba.load_teacher(llama_folder(tmp_path / "language", context=512))
    with pytest.raises(UserError, match=r"reads no pictures; write task\.pictures: none"):
        task_of(language)
    alone = task_of(language, pictures="none", lookup=0)
    assert alone.inputs == ("text",) and [m.key for m in alone.metrics][-1] == "question_control"
    alone.check(language, "teacher")
    batch = next(alone.train_batches(Steps(micro_batch=3, num_steps=1)))
    assert "image" not in batch.inputs and language(batch.inputs).logits is not None

    class Sees:
        preprocessing, vocabulary, view = reads_of(teacher).pictures, None, object()

    with pytest.raises(UserError, match="predicts no tokens"):
        task.check(Sees(), "teacher")
    with pytest.raises(UserError, match="does not say how its texts are read"):
        config_of().build(Sees.preprocessing)
    moved = replace(reads_of(teacher), image_token=9999)
    with pytest.raises(UserError, match="does not read the image token 9999"):
        config_of().build(moved)
    bare = replace(reads_of(teacher), text=replace(reads_of(teacher).text, context=None))  # type: ignore[type-var]
    with pytest.raises(UserError, match=r"write task\.context"):
        config_of().build(bare)
    with pytest.raises(UserError, match="context is 600 tokens, but the model reads at most 512"):
        task_of(teacher, context=600)
    assert config_of(context=90).build(bare).asking.longest == 90


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(context=1), "context: 1; write at least 2"),
        (dict(answer_tokens=0, lookup=-1), "answer_tokens: 0.*lookup: -1"),
        (dict(controls=["picture", "picture"]), "controls has picture twice"),
        (dict(bad_limit=1.5), "limit of bad pictures 1.5"),
        (dict(final_split="validation"), "validation is 0"),
        (dict(fraction=0), "fraction 0"),
    ],
)
def test_what_a_configuration_cannot_mean_is_told(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        config_of(**values)


def test_long_questions_count_as_bad_in_training_and_are_named_in_evaluation(
    teacher: Any, tmp_path: Path
) -> None:
    rows = [dict(question="one " * (300 if n in (2, 5) else 1), answer="two") for n in range(9)]
    file = write_jsonl(tmp_path / "q.jsonl", rows)
    data = dict(name="jsonl", train=file, test=file)
    task = task_of(teacher, data=data, bad_limit=2, answer_tokens=4)
    batches = list(task.train_batches(Steps(micro_batch=9, num_steps=1)))
    assert sorted(batches[0].index.tolist()) == list(range(9))
    with pytest.raises(UserError, match=r"2 of 9 questions cannot be used \(question 2: its \d+ tokens"):
        strict = task_of(teacher, data=data, bad_limit=1)
        list(strict.train_batches(Steps(micro_batch=9, num_steps=1, workers=1)))
    lines = list(task.look_through())
    assert [line.split(":")[0] for line in lines] == ["question 2", "question 5"]
    with pytest.raises(UserError, match="question 2: its"):
        list(task.eval_batches("test", Pass(batch_size=4)))


def test_stages_are_asked_for_and_learned(teacher: Any) -> None:
    task = task_of(teacher, rationales=True, data=dict(SCENES, types=["exist"]))
    assert task.config.room == 384 and STAGED in task.asking.turns(task.source("train").item(0))[0].content
    pairs = np.stack([np.zeros(4, np.int64), np.arange(4)], axis=1)
    learned = task.train_source(0)
    (batch,) = load(learned, [pairs], 4)
    row = batch.targets["tokens"][0]
    asked = learned.source.item(int(batch.index[0]))
    assert asked.rationale is not None
    said = task.asking.tokenizer.words(row[row >= 0].tolist())
    assert said == asked.rationale.written(asked.answers[0]) and "<CONCLUSION>" in said


@pytest.mark.parametrize("reasoned", ((), (1, 3)), ids=("none has reasons", "some have"))
def test_questions_without_reasons_are_asked_in_stages_too(
    teacher: Any, tmp_path: Path, reasoned: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Answered in writing; how likely an answer is is measured of those that have its reasons."""
    rows = [dict(question=f"what comes after {n}?", answer=str(n + 1)) for n in range(5)]
    for n in reasoned:
        rows[n] |= {"rationale": f"after {n} comes {n + 1}"}
    data = dict(name="jsonl", test=write_jsonl(tmp_path / "q.jsonl", rows))
    values = dict(rationales=True, data=data, answer_tokens=6, controls=[], lookup=0)
    task = task_of(teacher, **values)
    assert list(task.look_through()) == []
    runner = ModelRunner(teacher, torch.device("cpu"), kind="teacher")
    measured = measure(task.evaluators("test"), {"teacher": runner}, Pass(batch_size=2))
    assert len(measured.outcomes[0]["teacher"].answers.said) == 5
    assert [len(each["teacher"].index) for each in measured.outcomes] == [5, *([2] if reasoned else [])]
    assert ("perplexity" in measured.metrics("teacher")) == bool(reasoned)
    assert ("no question has a rationale" in caplog.text) == (not reasoned)
    if reasoned:
        alone = task_of(teacher, **values, writing="never")
        assert [batch.index.tolist() for batch in alone.eval_batches("test", Pass(batch_size=4))] == [[1, 3]]
    else:
        with pytest.raises(UserError, match="no question of the test split has one, and writing is never"):
            task_of(teacher, **values, writing="never").evaluators("test")


def test_what_is_drawn_of_a_split_is_a_fixed_choice_of_it(teacher: Any, tmp_path: Path) -> None:
    """With reasons, of those questions that have some: no answer of another can be read."""
    task = task_of(teacher, validation=0.5, final_split="test")
    drawn: dict[str, list[int]] = {}
    for split in ("train", "validation", "test"):
        batches = list(task.drawn(split, 12, 5))
        drawn[split] = [n for batch in batches for n in batch.index.tolist()]
        assert [len(batch) for batch in batches] == [5, 5, 2] and len(set(drawn[split])) == 12
        assert set(drawn[split]) <= set(task.indices(split).tolist()) and drawn[split] != sorted(drawn[split])
        learned = EvalQuestions(task.source(split), task.asking)
        assert all(same(batch, learned.batch(batch.index.numpy())) for batch in batches)
        again = task_of(teacher, validation=0.5, final_split="test").drawn(split, 7, 7)
        assert next(again).index.tolist() == drawn[split][:7], "fewer are the first of more"
    assert not set(drawn["train"]) & set(drawn["validation"])
    assert sum(len(batch) for batch in task.drawn("test", 99, 8)) == 20
    rows = [dict(question=f"what comes after {n}?", answer=str(n + 1)) for n in range(9)]
    for n in (1, 3, 4, 8):
        rows[n] |= {"rationale": f"after {n} comes {n + 1}"}
    data = dict(name="jsonl", test=write_jsonl(tmp_path / "q.jsonl", rows))
    staged = task_of(teacher, rationales=True, data=data, controls=[], lookup=0)
    found = [
        set(batch.index.tolist()) for batch in (*staged.drawn("test", 3, 3), *staged.drawn("test", 9, 9))
    ]
    assert len(found[0]) == 3 and found[0] < found[1] == {1, 3, 4, 8}
