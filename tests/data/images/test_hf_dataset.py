from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transmamba.data.images.folder import ImageFolder
from transmamba.data.images.hf import HfDataset
from transmamba.data.images.source import ImageSource
from transmamba.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs pip install 'transmamba[data]'")

COUNT = {"train": 6, "test": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


def _picture(split: str, number: int) -> np.ndarray:
    return np.random.default_rng([len(split), number]).integers(0, 256, (7, 9, 3), dtype=np.uint8)


def _table(split: str, **columns):
    """A split with the column `img` and whatever else is given as (values, feature)."""
    pictures = [Image.fromarray(_picture(split, number)) for number in range(COUNT[split])]
    data = {"img": pictures} | {name: values for name, (values, _) in columns.items()}
    features = {"img": datasets.Image()} | {name: feature for name, (_, feature) in columns.items()}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def _labels(split: str, names=("no", "yes", "never")):
    return ([number % 2 for number in range(COUNT[split])], datasets.ClassLabel(names=list(names)))


def _save(path: Path, **splits) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(path))
    return str(path)


def _check(source: ImageSource, split: str, classes: tuple[str, ...]) -> None:
    assert source.classes == classes and source.labels.tolist() == _labels(split)[0]
    assert source.labels.dtype == np.int64 and source.array() is None
    for number in range(COUNT[split]):
        assert np.array_equal(np.asarray(source.image(number)), _picture(split, number))


@pytest.mark.parametrize("test_name", ["test", "validation"])
def test_saved_to_disk(tmp_path: Path, test_name: str) -> None:
    tables = {
        "train": _table("train", label=_labels("train")),
        test_name: _table("test", label=_labels("test")),
    }
    reader = HfDataset(path=_save(tmp_path / "saved", **tables))
    _check(reader.build("train"), "train", ("no", "yes", "never"))
    _check(reader.build("test"), "test", ("no", "yes", "never"))
    ram = HfDataset(path=reader.path, cache="ram").build("test").array()
    assert ram is not None and np.array_equal(ram[2], _picture("test", 2))


def test_rows_keep_their_labels_after_a_shuffle(tmp_path: Path) -> None:
    table = _table("train", label=_labels("train")).shuffle(seed=1)
    source = HfDataset(path=_save(tmp_path / "saved", train=table)).build("train")
    assert source.labels.tolist() == table["label"][:]
    for number in range(len(source)):
        assert np.array_equal(np.asarray(source.image(number)), np.asarray(table[number]["img"]))


def test_parquet_folder(tmp_path: Path) -> None:
    for split in COUNT:
        _table(split, label=_labels(split)).to_parquet(str(tmp_path / "p" / f"{split}-00000.parquet"))
    reader = HfDataset(path=str(tmp_path / "p"))
    _check(reader.build("train"), "train", ("no", "yes", "never"))
    _check(reader.build("test"), "test", ("no", "yes", "never"))


def test_image_folder_reads_as_our_own_reader_does(folder: Path) -> None:
    for split in ("train", "test"):
        theirs, ours = HfDataset(path=str(folder)).build(split), ImageFolder(root=str(folder)).build(split)
        assert theirs.classes == ours.classes and theirs.labels.tolist() == ours.labels.tolist()
        same = [
            np.array_equal(np.asarray(theirs.image(i)), np.asarray(ours.image(i))) for i in range(len(ours))
        ]
        assert all(same)


def test_labels_as_text_or_bare_numbers(tmp_path: Path) -> None:
    words = {
        split: ([("b", "a")[n % 2] for n in range(COUNT[split])], datasets.Value("string")) for split in COUNT
    }
    path = _save(tmp_path / "text", **{split: _table(split, label=words[split]) for split in COUNT})
    source = HfDataset(path=path).build("train")
    assert source.classes == ("a", "b") and source.labels.tolist() == [1, 0] * 3
    numbers = {"train": [0, 1, 2, 0, 1, 2], "test": [0, 1, 0]}
    tables = {s: _table(s, target=(numbers[s], datasets.Value("int32"))) for s in COUNT}
    source = HfDataset(path=_save(tmp_path / "numbers", **tables)).build("test")
    assert source.classes == ("0", "1", "2") and source.labels.tolist() == [0, 1, 0]


def test_unlabelled_test_split_is_passed_over(tmp_path: Path) -> None:
    hidden = ([-1, -1, -1], datasets.ClassLabel(names=["no", "yes", "never"]))
    tables = {"train": _table("train", label=_labels("train")), "test": _table("test", label=hidden)}
    with pytest.raises(UserError, match="no labelled test split among train, test; write test_split"):
        HfDataset(path=_save(tmp_path / "a", **tables)).build("test")
    reader = HfDataset(path=_save(tmp_path / "b", **tables, validation=_table("test", label=_labels("test"))))
    _check(reader.build("test"), "test", ("no", "yes", "never"))
    with pytest.raises(UserError, match=r"label -1.*unlabelled"):
        HfDataset(path=reader.path, test_split="test").build("test")


def test_columns_are_detected_or_asked_for(tmp_path: Path) -> None:
    fine, coarse = _labels("train"), _labels("train", ("x", "y"))
    both = _save(tmp_path / "both", train=_table("train", coarse_label=coarse, fine_label=fine))
    assert HfDataset(path=both).build("train").classes == ("no", "yes", "never")
    assert HfDataset(path=both, label_column="coarse_label").build("train").classes == ("x", "y")
    for options, message in (
        ({"label_column": "fine_labl"}, "no column 'fine_labl'; did you mean 'fine_label'"),
        ({"image_column": "coarse_label"}, "column 'coarse_label' holds .*, not images"),
        ({"train_split": "trian"}, "train_split 'trian' is no split; did you mean 'train'"),
        ({"test_split": "dev"}, "test_split 'dev' is no split"),
    ):
        with pytest.raises(UserError, match=message):
            HfDataset(path=both, **options).build("train")
    odd = _save(tmp_path / "odd", train=_table("train", one=fine, two=coarse))
    with pytest.raises(UserError, match="which column is the label"):
        HfDataset(path=odd).build("train")
    images = _table("train", label=fine, second=([Image.new("L", (2, 2))] * 6, datasets.Image()))
    with pytest.raises(UserError, match=r"several image columns \(img, second\).*write image_column"):
        HfDataset(path=_save(tmp_path / "two", train=images)).build("train")


def test_broken_rows_are_refused_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoded = [
        {"bytes": (b"no picture" if n in (1, 4) else _png("train", n)), "path": None} for n in range(6)
    ]
    features = datasets.Features({"img": datasets.Image(), "label": _labels("train")[1]})
    table = datasets.Dataset.from_dict({"img": encoded, "label": _labels("train")[0]}, features=features)
    path = _save(tmp_path / "saved", train=table)
    source = HfDataset(path=path).build("train")
    source.image(0)
    with pytest.raises(UserError, match=f"^{path}: train: row 4: does not decode as an image"):
        source.image(4)
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = HfDataset(path=path, on_error="skip").build("train")
    assert "skipping 2 of 6" in caplog.text and source.skipped == 2
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(np.asarray(source.image(1)), _picture("train", 2))


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="absent does not exist; expected a folder saved by save_to_disk"):
        HfDataset(path=str(tmp_path / "absent")).build("train")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    for name in ("empty", "broken"):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: cannot be loaded") as caught:
            HfDataset(path=str(tmp_path / name)).build("train")
        assert "\n" not in str(caught.value)

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"^some/name: cannot be loaded \(Couldn't reach the Hub at all\)"):
        HfDataset(path="some/name").build("train")


def _png(split: str, number: int) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(_picture(split, number)).save(buffer, format="png")
    return buffer.getvalue()
