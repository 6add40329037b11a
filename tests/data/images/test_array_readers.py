"""The readers that hold everything in memory: idx, npz, digits, synthetic."""

from __future__ import annotations

import gzip
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from transmamba.data.images.digits import Digits
from transmamba.data.images.idx import Idx
from transmamba.data.images.npz import Npz
from transmamba.data.images.synthetic import Synthetic
from transmamba.errors import UserError

SHARED = Path(os.environ.get("TRANSMAMBA_DATA", Path(__file__).parents[4] / "shared" / "data"))
DIGITS = {"train": (7, 3), "test": (4, 2)}


def _arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    count, classes = DIGITS[split]
    pixels = np.random.default_rng(count).integers(0, 256, (count, 5, 6), dtype=np.uint8)
    return pixels, (np.arange(count) % classes).astype(np.uint8)


def _write_idx(root: Path, compressed: bool, dotted: bool = False) -> None:
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels, labels = _arrays(split)
        for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
            content = header + array.tobytes()
            path = root / f"{prefix}-{name.replace('-idx', '.idx') if dotted else name}"
            if compressed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("compressed, dotted", [(False, False), (True, False), (True, True)])
def test_idx_files_are_read_back(tmp_path: Path, compressed: bool, dotted: bool, split: str) -> None:
    _write_idx(tmp_path, compressed, dotted)
    source = Idx(root=str(tmp_path)).build(split)
    pixels, labels = _arrays(split)
    array = source.array()
    assert array is not None and np.array_equal(array[..., 0], pixels)
    assert source.labels.tolist() == labels.tolist() and source.labels.dtype == np.int64
    assert source.classes == ("0", "1", "2")  # of both splits, though the test split lacks the last
    assert source.image(1).mode == "L" and np.array_equal(np.asarray(source.image(1)), pixels[1])


def test_idx_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent does not exist; expected a folder with train-images"):
        Idx(root=str(tmp_path / "absent")).build("train")
    with pytest.raises(UserError, match=r"no train-labels-idx1-ubyte\[.gz\]; expected"):
        Idx(root=str(tmp_path)).build("train")
    _write_idx(tmp_path, compressed=True)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(images.read_bytes())
    for content, message in (
        (gzip.compress(whole[:-1]), "do not match its header"),
        (gzip.compress(whole[:9]), "do not match its header"),
        (gzip.compress(b"\x89PNG...."), "expected an idx file of bytes"),
        (gzip.compress(whole)[:40], "cannot be read"),
        (b"plain", "cannot be read"),
    ):
        images.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            Idx(root=str(tmp_path)).build("train")
        assert str(images) in str(caught.value) and "\n" not in str(caught.value)
    images.write_bytes((tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes())
    with pytest.raises(UserError, match="7 labels for 4 images"):
        Idx(root=str(tmp_path)).build("train")


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    pixels, labels = np.zeros((6, 4, 4, 3), dtype=np.uint8), np.array([[0], [1], [2], [0], [1], [2]])
    parts = {
        "train_images": pixels,
        "train_labels": labels,
        "test_images": pixels[:2],
        "test_labels": labels[:2, 0],
    }
    np.savez(path, **parts)
    train, test = (Npz(path=str(path)).build(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 2) and train.classes == test.classes == ("0", "1", "2")
    assert train.image(0).mode == "RGB" and train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    for change, message in (
        ({"train_images": pixels / 255}, "images must be uint8"),
        ({"train_images": pixels[..., :2]}, r"images must be \(N, H, W\)"),
        ({"train_images": pixels[:5]}, "6 labels for 5 images"),
        ({"train_labels": labels - 1}, "class numbers start at 0"),
        ({"train_labels": labels * 0.5}, "labels must be integers"),
        ({"train_images": None}, "no train_images, only test_images"),
    ):
        np.savez(path, **{key: value for key, value in {**parts, **change}.items() if value is not None})
        with pytest.raises(UserError, match=message) as caught:
            Npz(path=str(path)).build("train")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        Npz(path=str(path)).build("train")
    with pytest.raises(UserError, match=r"does not exist; expected an \.npz"):
        Npz(path=str(tmp_path / "absent.npz")).build("train")


def test_digits_split_is_stratified_disjoint_and_seeded() -> None:
    train, test = Digits().build("train"), Digits().build("test")
    assert len(train) + len(test) == 1797
    everything = np.bincount(train.labels) + np.bincount(test.labels)
    assert np.bincount(test.labels).tolist() == (everything // 5).tolist()
    array = train.array()
    assert array is not None and array.shape[1:] == (8, 8, 1) and array.max() == 255 and array.min() == 0
    assert np.array_equal(Digits().build("test").array(), test.array())  # type: ignore[arg-type]
    assert not np.array_equal(Digits(split_seed=1).build("test").array(), test.array())  # type: ignore[arg-type]


def test_digits_folds_cover_everything_once() -> None:
    from sklearn.datasets import load_digits

    tests = [Digits(folds=5, fold=k).build("test") for k in range(5)]
    trains = [Digits(folds=5, fold=k).build("train") for k in range(5)]
    assert [len(a) + len(b) for a, b in zip(tests, trains, strict=True)] == [1797] * 5
    seen = np.sort(
        np.concatenate([t.pixels.reshape(len(t), -1).astype(np.int64) @ np.arange(64) for t in tests])
    )  # type: ignore[attr-defined]
    data = np.rint(load_digits().images.reshape(1797, -1) * (255 / 16)).astype(np.int64)
    assert np.array_equal(seen, np.sort(data @ np.arange(64)))
    assert max(map(len, tests)) - min(map(len, tests)) <= 10


@pytest.mark.parametrize(
    "options, message",
    [
        ({"test_fraction": 0.0}, "test_fraction 0.0"),
        ({"folds": 1}, "folds 1"),
        ({"folds": 5, "fold": 5}, "fold 5: must be between 0 and 4"),
        ({"fold": 2}, "fold 2 without folds"),
    ],
)
def test_digits_mistakes(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Digits(**options)


def test_missing_extras_name_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from transmamba.data.images.hf import HfDataset

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for reader in (Digits(), HfDataset(path="someone/something")):
        with pytest.raises(UserError, match=r"pip install 'transmamba\[data\]'"):
            reader.build("train")


def test_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Synthetic(num_train=25, num_test=10, num_classes=4, size=6)
    train, again, test = reader.build("train"), reader.build("train"), reader.build("test")
    assert len(train) == 25 and len(train.classes) == 4 and np.bincount(train.labels).tolist() == [7, 6, 6, 6]
    assert np.array_equal(train.array(), again.array())  # type: ignore[arg-type]
    assert not np.array_equal(train.array()[:10], test.array())  # type: ignore[index, arg-type]
    monkeypatch.setattr("transmamba.data.images.synthetic._MAX_BYTES", 10 * 6 * 6 * 3)
    large = reader.build("train")
    assert large.array() is None and np.array_equal(np.asarray(large.image(24)), np.asarray(large.image(4)))
    with pytest.raises(UserError, match="num_train 0"):
        Synthetic(num_train=0)


def test_readers_know_two_splits() -> None:
    with pytest.raises(UserError, match="split 'val'"):
        Synthetic().build("val")


@pytest.mark.shared_data
def test_real_mnist() -> None:
    path = SHARED / "mnist" / "mnist.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set TRANSMAMBA_DATA to the folder that holds mnist/mnist.npz")
    train, test = (Npz(path=str(path)).build(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (60_000, 10_000) and train.classes == tuple("0123456789")
    # The first labels and class sizes of the official files, as published.
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from transmamba.data.images.source import existing
    from transmamba.data.pairs.files import expand

    monkeypatch.delenv("TRANSMAMBA_NOWHERE", raising=False)
    for look in (lambda path: existing(path, "a file"), expand):
        with pytest.raises(
            UserError, match=r"; TRANSMAMBA_NOWHERE is not set: export TRANSMAMBA_NOWHERE=FOL"
        ):
            look("$TRANSMAMBA_NOWHERE/a/*.txt")
    monkeypatch.setenv("TRANSMAMBA_NOWHERE", "/nowhere")
    with pytest.raises(UserError, match=r"/nowhere/a\.txt does not exist; expected a file$"):
        existing("$TRANSMAMBA_NOWHERE/a.txt", "a file")
