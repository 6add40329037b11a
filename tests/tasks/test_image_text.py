"""Pictures and captions as a task: what its batches depend on, which captions they have, what it refuses."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from harness import tiny_teacher
from PIL import Image
from tiny_clip import made

from transmamba.config import load as configs
from transmamba.core.batch import Batch
from transmamba.core.preprocessing import Preprocessing
from transmamba.core.task import Pass, Steps, Task
from transmamba.core.text import Tokens
from transmamba.data.pairs.stored import StoredPairs
from transmamba.errors import UserError
from transmamba.evaluation.agreement import AgreementEvaluator
from transmamba.evaluation.linear_probe import LinearProbeEvaluator
from transmamba.evaluation.retrieval import RetrievalEvaluator
from transmamba.evaluation.zero_shot import ZeroShotEvaluator
from transmamba.tasks.image_text import ImageText, ImageTextConfig
from transmamba.teachers.load import adapt_teacher

PICTURES = 7


@dataclass(frozen=True)
class Letters:
    """A tokenizer whose tokens are the characters."""

    context: int = 10

    def __call__(self, texts: Sequence[str]) -> Tokens:
        ids = torch.zeros(len(texts), self.context, dtype=torch.int64)
        for row, text in enumerate(texts):
            cut = text[: self.context]
            ids[row, : len(cut)] = torch.tensor([ord(letter) for letter in cut])
        return Tokens(ids, ids > 0, sum(len(text) > self.context for text in texts))

    def save(self, folder: Path) -> None:
        pass


LOOKS = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash", text=Letters())
NO_TEXT = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "squash")


def said(batch: Batch) -> list[str]:
    return ["".join(chr(int(code)) for code in row if code) for row in batch.inputs["text"]]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Picture n is of the colour n, and has 1 + n % 3 captions: `n a`, `n b`, `n c`."""
    rows = []
    for n in range(PICTURES):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"{n}.png")
        captions = [f"{n} {letter}" for letter in "abc"[: 1 + n % 3]]
        rows.append(json.dumps({"image": f"{n}.png", "caption": captions}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    return tmp_path / "pairs.jsonl"


def task_of(table: Path, **options: Any) -> ImageText:
    values = {"data": {"name": "table", "train": str(table), "test": str(table)}, **options}
    return configs.parse(ImageTextConfig, values, "task").build(LOOKS)


def of_pictures(folder: Path, **options: Any) -> ImageText:
    values = {"data": {"name": "pictures", "train": str(folder), "test": str(folder)}, **options}
    return configs.parse(ImageTextConfig, values, "task").build(LOOKS)


def batches(task: ImageText, start: int = 0, steps: int = 7, seed: int = 0, micro: int = 3) -> list[Batch]:
    return list(task.train_batches(Steps(micro_batch=micro, start_step=start, num_steps=steps, seed=seed)))


# --- training ---


def test_it_is_a_task(table: Path) -> None:
    task = task_of(table)
    assert isinstance(task, Task) and (task.num_train, task.num_classes) == (PICTURES, None)
    assert task.change(batches(task)[0], 3) is not None


def test_the_stream_follows_from_seed_and_step(table: Path) -> None:
    whole, rest = batches(task_of(table), steps=7), batches(task_of(table), start=3, steps=4)
    assert len(whole) == 7
    for one, other in zip(whole[3:], rest, strict=True):
        assert one.inputs.keys() == other.inputs.keys() and torch.equal(one.index, other.index)
        assert all(torch.equal(one.inputs[key], other.inputs[key]) for key in one.inputs)
        assert torch.equal(one.targets["group"], other.targets["group"]) and one.counts == other.counts
    assert [said(batch) for batch in whole] != [said(batch) for batch in batches(task_of(table), seed=1)]


def test_every_epoch_has_each_picture_once_with_one_of_its_captions(table: Path) -> None:
    epochs = 30
    found = [
        (int(number), text)
        for batch in batches(task_of(table), steps=epochs, micro=PICTURES)
        for number, text in zip(batch.index, said(batch), strict=True)
    ]
    for epoch in range(epochs):
        seen = sorted(number for number, _ in found[epoch * PICTURES : (epoch + 1) * PICTURES])
        assert seen == list(range(PICTURES))
    assert all(text.startswith(f"{number} ") for number, text in found)
    drawn = Counter(found)
    for number in range(PICTURES):  # every one is drawn, about equally often
        counts = [drawn[number, f"{number} {letter}"] for letter in "abc"[: 1 + number % 3]]
        assert sum(counts) == epochs and min(counts) >= epochs / len(counts) / 3
    first = dict(found[:PICTURES])
    second = dict(found[PICTURES : 2 * PICTURES])
    assert first != second


def test_batches_count_and_group(table: Path) -> None:
    batch = batches(task_of(table))[0]
    assert torch.equal(batch.targets["group"], batch.index)
    assert batch.counts == {"samples": 3, "pairs": 3, "tokens": 9}
    (whole,) = task_of(table).eval_batches("test", Pass(batch_size=PICTURES))
    assert whole.counts["pairs"] == 13 == len(whole.targets["group"])
    assert said(whole)[:4] == ["0 a", "1 a", "1 b", "2 a"]


def test_without_captions_none_is_read(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(table, captions=False)

    def never(self: Any, index: int) -> tuple[str, ...]:
        raise AssertionError("read")

    monkeypatch.setattr(StoredPairs, "captions", never)
    batch = batches(task)[0]
    assert batch.inputs.keys() == {"image"} and batch.counts == {"samples": 3}
    task.train_source(0).identity()
    assert next(task.calibration(2, 2)).inputs.keys() == {"image"}


def test_truncated_captions_are_counted_in_one_line(table: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [json.loads(line) for line in table.read_text().splitlines()]
    for line in lines[:3]:
        line["caption"] = ["a caption that is too long", "short"]
    table.write_text("\n".join(map(json.dumps, lines)))
    with caplog.at_level(logging.WARNING, "transmamba.data"):
        assert not list(task_of(table).look_through())
    (record,) = caplog.records
    assert "3 of 13 training captions" in record.message and "10 tokens" in record.message
    caplog.clear()
    with caplog.at_level(logging.WARNING, "transmamba.data"):
        list(task_of(table, captions=False).look_through())
    assert not caplog.records


def test_a_bad_picture_is_replaced_within_the_limit(table: Path) -> None:
    (table.parent / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="more than the limit 0"):
        batches(task_of(table, bad_limit=0.0))
    (every,) = batches(task_of(table, bad_limit=0.2), steps=1, micro=PICTURES)
    shown = ((every.inputs["image"][:, 0, 0, 0] * 0.5 + 0.5) * 255).round().long().tolist()
    assert 3 not in shown and len(shown) == PICTURES
    # the caption is that of the picture which is shown
    assert [int(text.split()[0]) for text in said(every)] == shown


def test_identity_follows_what_batches_depend_on(table: Path) -> None:
    def identity(**options: Any) -> str:
        seed = options.pop("seed", 0)
        return json.dumps(task_of(table, **options).train_source(seed).identity(), default=str)

    same = identity()
    assert identity() == same
    others = [
        identity(seed=1),
        identity(captions=False),
        identity(fraction=0.5),
        identity(augment={"hflip": True}),
    ]
    assert len({same, *others}) == 5
    table.write_text(table.read_text().replace("0 a", "0 z"))
    assert identity() != same and identity(captions=False) == others[1]


# --- what is measured ---


def test_pairs_have_retrieval_and_pictures_agreement(table: Path) -> None:
    (evaluator,) = task_of(table).evaluators("test")
    assert isinstance(evaluator, RetrievalEvaluator)
    task = of_pictures(table.parent, captions=False)
    (evaluator,) = task.evaluators("test")
    assert isinstance(evaluator, AgreementEvaluator)
    assert [metric.key for metric in task.metrics] == ["image_cosine"] and task.metrics[0].headline
    (batch,) = evaluator.batches(Pass(batch_size=20))
    assert batch.inputs.keys() == {"image"} and len(batch) == PICTURES


def test_other_data_are_measured_with_the_final_split(table: Path, tmp_path: Path) -> None:
    data = {"name": "synthetic", "num_train": 6, "num_test": 4, "num_classes": 3, "size": 8}
    (tmp_path / "t.txt").write_text("a {c}.\nno {c}.\n")
    more = {"data": data, "name": "toys", "templates": str(tmp_path / "t.txt")}
    options = dict(zero_shot=[{"data": data}, more], probe=data, validation=0.3, final_split="test")
    task = task_of(table, **options)
    assert [type(e) for e in task.evaluators("validation")] == [RetrievalEvaluator]
    _, one, two, probe = task.evaluators("test")
    assert isinstance(one, ZeroShotEvaluator) and isinstance(probe, LinearProbeEvaluator)
    assert isinstance(two, ZeroShotEvaluator) and two.templates == ("a {c}.", "no {c}.")
    keys = [metric.key for metric in task.metrics]
    assert len(set(keys)) == len(keys) and {"zero_shot_top1", "zero_shot_toys_top1", "probe_top1"} <= {*keys}
    assert [metric.key for e in (one, two, probe) for metric in e.metrics] == keys[-12:]
    (batch,) = one.batches(Pass(batch_size=9))
    assert len(batch) == 4 and batch.inputs["image"].shape == (4, 3, 8, 8)
    assert len(list(probe.batches(Pass(batch_size=9)))) == 2


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(names=["", ""]), "zero_shot has two named ''; give each a name of its own"),
        (dict(names=["a", "b", "a"]), "zero_shot has two named 'a'"),
        (dict(names=["CIFAR 10"]), "zero_shot.0: name 'CIFAR 10': write small letters, digits and _"),
        (dict(validation=1.0), "validation"),
        (dict(final_split="validation"), "hold out a share"),
        (dict(bad_limit=1.5), "limit of bad pictures 1.5"),
    ],
)
def test_wrong_options(table: Path, options: dict[str, Any], says: str) -> None:
    names = options.pop("names", [])
    sets = [{"data": {"name": "synthetic"}, "name": name} for name in names]
    with pytest.raises(UserError) as refused:
        task_of(table, zero_shot=sets, **options)
    assert says in str(refused.value)


def test_captions_that_are_not_there(table: Path) -> None:
    task = of_pictures(table.parent)
    for way in (lambda: list(task.look_through()), lambda: task.train_source(0)):
        with pytest.raises(UserError, match=r"no training picture has a caption; write task\.captions"):
            way()


def test_a_training_split_that_is_missing_is_said_when_it_is_asked_for(table: Path) -> None:
    values: dict[str, Any] = {"data": {"name": "table", "test": str(table)}}
    task = configs.parse(ImageTextConfig, values, "task").build(LOOKS)
    assert len(task.indices("test")) == PICTURES
    with pytest.raises(UserError, match="no train split"):
        _ = task.num_train


def test_a_teacher_without_a_tower(table: Path) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(UserError, match="teacher embeds no image"):
        task_of(table).check(tiny_teacher(), "teacher")
    teacher = adapt_teacher(made())
    task_of(table).check(teacher, "teacher")
    image = replace(teacher.view, towers={"image": teacher.view.towers["image"]})
    image = replace(image, heads={"image": teacher.view.heads["image"]})
    with pytest.raises(UserError, match="teacher embeds no text"):
        task_of(table).check(SimpleNamespace(view=image), "teacher")


def test_a_model_that_reads_no_texts(table: Path) -> None:
    values: dict[str, Any] = {"data": {"name": "table", "train": str(table), "test": str(table)}}
    task = configs.parse(ImageTextConfig, values, "task").build(NO_TEXT)
    with pytest.raises(UserError, match="does not say how its texts are read"):
        task.check(torch.nn.Identity(), "model")


def test_a_probe_s_splits_have_the_same_classes(table: Path, tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            (tmp_path / "classes" / split / name).mkdir(parents=True)
            pixels = np.zeros((8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "classes" / split / name / "0.png")
    with pytest.raises(UserError):
        task_of(table, probe={"name": "image_folder", "root": str(tmp_path / "classes")})


def test_calibration_bears_bad_pictures_too(table: Path) -> None:
    (table.parent / "3.png").write_bytes(b"no picture")
    task = task_of(table, bad_limit=1)
    found = list(task.calibration(PICTURES, 3))
    assert sum(len(batch) for batch in found) == PICTURES
    with pytest.raises(UserError, match="1 of 7 pictures do not decode"):
        list(task_of(table, bad_limit=0).calibration(PICTURES, 3))


def test_a_bad_pictures_substitute_keeps_its_own_group(table: Path) -> None:
    """Its captions are no wrong answers to the picture that also comes by itself."""
    (table.parent / "3.png").write_bytes(b"no picture")
    task = task_of(table, bad_limit=1)
    for batch in batches(task):
        captions, groups = said(batch), batch.targets["group"].tolist()
        assert [int(text.split()[0]) for text in captions] == groups and 3 not in groups


def test_pictures_alone_need_no_tokenizer(tmp_path: Path) -> None:
    for n in range(4):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(tmp_path / f"{n}.png")
    values = {"data": {"name": "pictures", "train": str(tmp_path), "test": str(tmp_path)}, "captions": False}
    task = configs.parse(ImageTextConfig, values, "task").build(NO_TEXT)
    task.check(SimpleNamespace(), "student")
    assert isinstance(task.evaluators("test")[0], AgreementEvaluator)
    assert set(batches(task)[0].inputs) == {"image"}
