"""Names of classes joined between the data and a model."""

from __future__ import annotations

import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest

from transmamba.data.classes import count_of, disagreement, joined, names_of, numbered_as_text
from transmamba.errors import UserError


def test_names_and_numbers_of_models_of_every_library() -> None:
    transformers = pytest.importorskip("transformers")
    unnamed = SimpleNamespace(config=transformers.ViTConfig(num_labels=12))
    assert count_of(unnamed) == 12 and names_of(unnamed) is None
    # As it comes out of JSON, where keys are text and 10 stands before 2.
    labels = {str(number): f"name {number}" for number in (0, 1, 10, 11, *range(2, 10))}
    named = SimpleNamespace(config=transformers.ViTConfig(num_labels=12, id2label=labels))
    assert names_of(named) == tuple(f"name {number}" for number in range(12))
    timm = SimpleNamespace(num_classes=3)
    assert count_of(timm) == 3 and names_of(timm) is None
    teacher = SimpleNamespace(num_classes=2, class_names=("a", "b"), config=named.config)
    assert count_of(teacher) == 2 and names_of(teacher) == ("a", "b")
    assert count_of(object()) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["c", "a", "b"], ("c", "a", "b")),
        ({"2": "b", "0": "c", "1": "a"}, ("c", "a", "b")),
        ({"n01440764": "c", "n01443537": "a", "n02": "b"}, None),
        (["c", "a"], None),  # of the head that it had before
        (["c", None, "b"], None),
        (None, None),
    ],
    ids=str,
)
def test_a_student_carries_the_names_of_its_teacher(names: Any, expected: Any) -> None:
    model = SimpleNamespace(num_classes=3, pretrained_cfg={"label_names": names})
    assert names_of(model) == expected


@pytest.mark.parametrize(
    "mine, theirs, order",
    [
        (("ant", "bee", "cat"), ("ant", "bee", "cat"), [0, 1, 2]),
        (("ant", "bee", "cat"), ("cat", "ant", "bee"), [1, 2, 0]),
        (("0", "1", "10", "2"), ("0", "1", "2", "10"), [0, 1, 3, 2]),  # folders are sorted as text
        (("crane", "crane"), ("crane", "crane"), [0, 1]),  # ImageNet has two
        (("0", "1", "2"), ("ant", "bee", "cat"), None),
        (("ant", "bee", "cat"), ("class 0", "class 1", "class 2"), None),
        (("n01440764", "n01443537"), ("tench", "goldfish"), None),
    ],
)
def test_names_are_joined_and_numbers_left_in_place(mine, theirs, order) -> None:
    found = joined(mine, theirs, "teacher")
    assert (None if found is None else found.tolist()) == order


def test_names_that_differ_are_refused_by_name() -> None:
    with pytest.raises(UserError) as caught:
        joined(("ant", "bee"), ("ant", "wasp"), "teacher")
    assert "(only in the data: bee; only in teacher: wasp)" in str(caught.value)
    assert str(caught.value).startswith("teacher was made for other classes") and "\n" not in str(
        caught.value
    )
    with pytest.raises(UserError, match="one name to several classes"):
        joined(("a", "a", "b"), ("a", "b", "a"), "teacher")


def test_names_that_look_alike_are_said_to() -> None:
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert one != other
    said = disagreement("train", ("tea", one), "test", ("tea", other))
    assert "look alike: Unicode's NFC and NFD" in said
    assert "look alike" not in disagreement("train", ("tea", one), "test", ("tea", "milk"))


def test_long_lists_of_names_are_cut() -> None:
    said = disagreement("train", [f"n{number}" for number in range(9)], "test", [])
    assert said == "only in train: n0, n1, n2, n3, n4 ..."


def test_numbers_sorted_as_text_are_known() -> None:
    assert numbered_as_text(("0", "1", "10", "2"))
    assert not numbered_as_text(("0", "1", "2", "10")) and not numbered_as_text(("a", "10", "2"))
