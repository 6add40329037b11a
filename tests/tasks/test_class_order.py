"""The data's classes beside those of a teacher or a student: their count, their names, their order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_images import eval_of, first_of, task_of

from transmamba import convert, load_teacher
from transmamba.data import ArraySource
from transmamba.errors import UserError


def _model(num_classes: int, names: Sequence[str] | None = None) -> SimpleNamespace:
    return SimpleNamespace(num_classes=num_classes, class_names=names)


def test_a_teacher_of_another_head_is_sent_to_fine_tuning() -> None:
    task_of().check(_model(4), "teacher")
    message = (
        "teacher has 1000 classes but the data has 4: class 0, class 1, class 2, class 3; "
        "fit its head first: recipes/distill.py --config recipes/configs/finetune_head.yaml"
    )
    with pytest.raises(UserError) as caught:
        task_of().check(_model(1000), "teacher")
    assert str(caught.value) == message
    with pytest.raises(UserError, match=r"^student has 10 classes"):
        task_of().check(_model(10), "student")
    with pytest.raises(UserError, match=r"^student has no classes"):
        task_of().check(object(), "student")


@dataclass(frozen=True, kw_only=True)
class Named:
    """A reader of 12 images, each of the value of its class's place in the alphabet."""

    names: tuple[str, ...] = ("ant", "bee", "cat")

    def build(self, split: str) -> ArraySource:
        labels = np.arange(12, dtype=np.int64) % len(self.names)
        pixels = np.zeros((12, 8, 8, 3), dtype=np.uint8) + labels[:, None, None, None].astype(np.uint8)
        return ArraySource(pixels, labels, self.names)


def test_classes_are_numbered_as_the_teacher_names_them(caplog: pytest.LogCaptureFixture) -> None:
    """What a picture shows stays with its name, in every split and every batch."""
    task = task_of(data=Named(), validation=0.3, final_split="test")
    chosen = task.train_indices.tolist()
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        task.check(_model(3, ["cat", "ant", "bee"]), "teacher")
        task.check(_model(3), "student")
        task.check(_model(3, ["cat", "ant", "bee"]), "student")
    assert len(caplog.records) == 1 and "teacher's order, by name: 'ant' is 1, not 0" in caplog.text
    assert task.classes == ("cat", "ant", "bee") and task.train_indices.tolist() == chosen
    batches = [first_of(task), *eval_of(task), *eval_of(task, "validation"), *task.calibration(5, 5)]
    for batch in batches:
        value = (batch.inputs["image"][:, 0, 0, 0] * 0.25 + 0.5) * 255
        for pixel, number in zip(
            value.round().int().tolist(), batch.targets["classes"].tolist(), strict=True
        ):
            assert task.classes[number] == Named().names[pixel]
    assert task.labels("test").tolist() == [1, 2, 0] * 4


def test_models_that_number_the_same_classes_apart_are_refused() -> None:
    for first, second in (("abc", "bca"), ("bca", "abc")):
        task = task_of(data=Named(names=tuple("abc")))
        task.check(_model(3, tuple(first)), "teacher")
        with pytest.raises(UserError, match=r"^student numbers the same classes in another order"):
            task.check(_model(3, tuple(second)), "student")


def test_other_names_are_refused_and_positions_taken_where_there_are_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(UserError, match=r"\(only in the data: cat; only in teacher: dog\)"):
        task_of(data=Named()).check(_model(3, ("ant", "bee", "dog")), "teacher")
    task = task_of(data=Named())
    task.check(_model(3, ("0", "1", "2")), "teacher")
    assert task.classes == ("ant", "bee", "cat") and not caplog.records
    task = task_of(data=Named(names=("0", "1", "10", "2")))
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        task.check(_model(4), "teacher")
    assert "numbered in the order 0, 1, 10, 2 ...: teacher has no names to join" in caplog.text


@pytest.mark.parametrize("count", [3, 12])
def test_a_hugging_face_teacher_s_id2label_numbers_the_data(
    count: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From its folder, where "10" comes before "2", and for a student that carries its names."""
    from transformers import ViTConfig, ViTForImageClassification

    data = Named(names=tuple("abcdefghijkl"[:count]))
    labels = dict(enumerate(reversed(data.names)))
    shape = dict(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = ViTForImageClassification(ViTConfig(**shape, num_labels=count, id2label=labels))
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    student, _ = convert(teacher, "vim")
    for numbering in ([teacher, student], [model], [student]):
        task = task_of(data=data)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="transmamba.data"):
            for each in numbering:
                task.check(each, "teacher")
        assert task.classes == tuple(labels.values()) and "by name: 'a' is" in caplog.text
        assert task.labels("test").tolist() == [count - 1 - k % count for k in range(12)]
