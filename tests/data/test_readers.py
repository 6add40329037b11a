"""Every registered reader: builds from a small example and keeps the contract of an `ImageSource`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from transmamba.config.registry import READERS
from transmamba.data.images.source import ArraySource, ImageSource, Renumbered
from transmamba.errors import UserError


def _folder(place: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (place / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / split / name / f"{number}.png")
    return {"root": str(place)}


def _saved(place: Path) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets", reason="needs pip install 'transmamba[data]'")
    pictures = [Image.fromarray(np.full((7, 9, 3), 40 * number, dtype=np.uint8)) for number in range(6)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1] * 3}, features=features)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(place))
    return {"path": str(place)}


def _idx(place: Path) -> dict[str, Any]:
    import struct

    place.mkdir()
    for prefix in ("train", "t10k"):
        for kind, array in (
            ("images-idx3-ubyte", np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)),
            ("labels-idx1-ubyte", np.arange(6, dtype=np.uint8) % 2),
        ):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (place / f"{prefix}-{kind}").write_bytes(header + array.tobytes())
    return {"root": str(place)}


def _npz(place: Path) -> dict[str, Any]:
    pixels, labels = np.zeros((6, 4, 5, 3), dtype=np.uint8), np.arange(6) % 2
    arrays = {f"{split}_images": pixels for split in ("train", "test")}
    np.savez(place, **arrays, train_labels=labels, test_labels=labels)
    return {"path": f"{place}.npz"}


def _digits(place: Path) -> dict[str, Any]:
    pytest.importorskip("sklearn", reason="needs pip install 'transmamba[data]'")
    return {}


def _records(place: Path) -> dict[str, Any]:
    place.mkdir()
    generator = np.random.default_rng(0)
    lines = ["image,group"]
    for number in range(30):
        pixels = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]}")
    (place / "table.csv").write_text("\n".join(lines))
    return {"files": str(place / "table.csv"), "label": "group"}


def _few(place: Path) -> dict[str, Any]:
    return {"data": READERS["synthetic"](size=9, num_classes=2), "train": 6, "test": None, "side": 8}


EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "digits": _digits,
    "few": _few,
    "hf_dataset": _saved,
    "idx": _idx,
    "image_folder": _folder,
    "npz": _npz,
    "records": _records,
    "scene_classes": lambda place: {
        **{"question": "count", "side": 16},
        **{"count_train": 8, "count_test": 8},
    },
    "synthetic": lambda place: {"num_train": 6, "num_test": 6, "num_classes": 2, "size": 8},
}


@pytest.fixture(params=list(READERS))
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    assert request.param in EXAMPLES, f"data reader {request.param!r} needs an example here"
    return READERS[request.param](**EXAMPLES[request.param](tmp_path / "data"))


def _pixels(source: ImageSource) -> list[np.ndarray]:
    return [np.asarray(source.image(number)) for number in range(min(6, len(source)))]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_source_is_labelled_images_in_an_order_that_stays(reader: Any, split: str) -> None:
    source, again = reader.build(split), reader.build(split)
    assert len(source) == len(source.labels) >= 6 and source.skipped == 0
    assert source.labels.dtype == np.int64 and source.labels.min() >= 0
    assert isinstance(source.classes, tuple) and source.labels.max() < len(source.classes)
    assert all(isinstance(name, str) for name in source.classes)
    assert np.array_equal(source.labels, again.labels) and source.classes == again.classes
    assert all(map(np.array_equal, _pixels(source), _pixels(again)))
    array = source.array()
    if array is not None:
        assert array.dtype == np.uint8 and array.ndim == 4 and len(array) == len(source)
        assert all(np.array_equal(array[n].squeeze(), pixels) for n, pixels in enumerate(_pixels(source)))


def test_both_splits_have_the_same_classes(reader: Any) -> None:
    assert reader.build("train").classes == reader.build("test").classes
    with pytest.raises(UserError, match="split 'dev': a data reader has the splits 'train' and 'test'"):
        reader.build("dev")


def test_a_source_reaches_a_process_that_is_not_forked(reader: Any) -> None:
    source = reader.build("train")
    assert all(map(np.array_equal, _pixels(source), _pixels(pickle.loads(pickle.dumps(source)))))


def test_classes_may_be_numbered_anew() -> None:
    pixels = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    source = ArraySource(pixels, np.array([0, 1, 2, 0]), ("ant", "bee", "cat"), skipped=3)
    other = Renumbered.of(source, np.array([1, 2, 0]))  # ant is 1, bee is 2, cat is 0
    assert other.classes == ("cat", "ant", "bee") and other.labels.tolist() == [1, 2, 0, 1]
    assert [other.classes[n] for n in other.labels] == [source.classes[n] for n in source.labels]
    assert other.skipped == 3 and len(other) == 4 and other.array() is pixels
