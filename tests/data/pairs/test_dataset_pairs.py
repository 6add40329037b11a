"""Pairs of the `datasets` library."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_files import encoded, pixels

from transmamba.data.pairs.hf import DatasetPairs
from transmamba.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs pip install 'transmamba[data]'")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


def table(first: int = 0, **columns: list[Any]) -> Any:
    count = len(next(iter(columns.values())))
    pictures = [{"bytes": encoded(pixels(first + n)), "path": None} for n in range(count)]
    made = datasets.Dataset.from_dict({"img": pictures, **columns})
    return made.cast_column("img", datasets.Image())


def save(path: Path, **splits: Any) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def check(source: Any, rows: list[int], captions: list[tuple[str, ...]], first: int = 0) -> None:
    assert [source.captions(n) for n in range(len(source))] == captions
    for number, row in enumerate(rows):
        assert np.array_equal(np.asarray(source.image(number)), pixels(first + row))


def test_texts_lists_and_several_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns: dict[str, list[Any]] = {
        "id": [1, 2, 3, 4],
        "text": ["one", " ", None, "four"],
        "more": [["a", "b"], [], [""], ["c"]],
    }
    path = save(tmp_path / "d", train=table(**columns))
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = DatasetPairs(path=path).build("train")
    check(source, [0, 3], [("one",), ("four",)])
    assert source.skipped == 2
    assert f"{path}: train: left out 2 pairs: 2 without a caption (first: row 1)" in caplog.text
    both = DatasetPairs(path=path, caption_column=("text", "more"), image_column="img").build("train")
    check(both, [0, 3], [("one", "a", "b"), ("four", "c")])


@pytest.mark.parametrize("name", ["test", "validation"])
def test_the_test_split_is_found_or_named(tmp_path: Path, name: str) -> None:
    splits = {
        "train": table(caption=["a"]),
        name: table(10, caption=["b", "c"]),
        "other": table(20, caption=["d"]),
    }
    path = save(tmp_path / "d", **splits)
    check(DatasetPairs(path=path).build("test"), [0, 1], [("b",), ("c",)], 10)
    check(DatasetPairs(path=path, test_split="other").build("test"), [0], [("d",)], 20)
    for options, says in (
        ({"test_split": "dev"}, "test_split 'dev' is no split"),
        ({"train_split": "trian"}, "train_split 'trian' is no split; did you mean 'train'"),
    ):
        with pytest.raises(UserError, match=says):
            DatasetPairs(path=path, **options).build("test" if "test_split" in options else "train")


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    table(caption=["a", "b"]).to_parquet(str(tmp_path / "p" / "train-00000.parquet"))
    check(DatasetPairs(path=str(tmp_path / "p")).build("train"), [0, 1], [("a",), ("b",)])


def test_mistakes(tmp_path: Path) -> None:
    path = save(tmp_path / "d", train=table(words=["a"], number=[3], empty=[""]))
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "train", "which column holds captions\\? img, words, number, empty; write caption_column: NAME"),
        ({"caption_column": "wrds"}, "train", "no column 'wrds'; did you mean 'words'"),
        ({"caption_column": "words", "image_column": "im"}, "train", "no column 'im'; did you mean 'img'"),
        (
            {"caption_column": "words", "image_column": "words"},
            "train",
            "column 'words' holds .*, not images",
        ),
        ({"caption_column": "number"}, "train", "row 0: 3 is no caption; write text or a list of texts"),
        ({"caption_column": "empty"}, "train", "holds no pairs: 1 without a caption"),
        ({"caption_column": "words"}, "test", "no test split among train; write test_split: NAME"),
    ]
    for options, split, says in cases:
        with pytest.raises(UserError, match=says) as caught:
            DatasetPairs(path=path, **options).build(split)
        assert path in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="gone does not exist; expected a folder saved by save_to_disk"):
        DatasetPairs(path=str(tmp_path / "gone")).build("train")


def test_a_row_without_a_picture_is_told(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict(
        {"img": [None, {"bytes": encoded(pixels(1)), "path": None}], "text": ["a", "b"]},
        features=datasets.Features({"img": datasets.Image(), "text": datasets.Value("string")}),
    )
    source = DatasetPairs(path=save(tmp_path / "d", train=made)).build("train")
    assert source.image(1).size == (8, 6)
    with pytest.raises(UserError, match="train: row 0: holds no image"):
        source.image(0)
