from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transmamba.data.images.folder import ImageFolder
from transmamba.errors import UserError

CLASSES = ("ant", "bee", "cat")


def test_reads_every_image_with_its_class(folder: Path) -> None:
    source = ImageFolder(root=str(folder)).build("train")
    assert source.classes == CLASSES and len(source) == 18 and source.skipped == 0
    assert source.labels.dtype == np.int64 and source.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    with Image.open(folder / "train" / "bee" / "2.png") as expected:
        assert np.array_equal(np.asarray(source.image(8)), np.asarray(expected))
    assert len(ImageFolder(root=str(folder)).build("test")) == 6


def test_suffixes_nesting_and_hidden_files(folder: Path) -> None:
    place = folder / "train" / "ant"
    picture = Image.new("RGB", (8, 8))
    for name in ("A.JPG", "b.JpEg", "c.webp", "d.bmp", "deeper/e.png", ".hidden.png", ".git/f.png", "g.txt"):
        (place / name).parent.mkdir(exist_ok=True)
        picture.save(place / name, format="bmp" if name.endswith("txt") else None)
    assert np.bincount(ImageFolder(root=str(folder)).build("train").labels).tolist() == [11, 6, 6]


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_names_of_the_test_split(folder: Path, name: str) -> None:
    if name != "test":
        (folder / "test").rename(folder / name)
        (folder / "test").mkdir()  # flat and unlabelled, as ImageNet's
    assert len(ImageFolder(root=str(folder)).build("test")) == 6


def test_tilde_and_variables_in_the_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", str(folder.parent))
    monkeypatch.setenv("HOME", str(folder.parent))
    for root in ("$SOME_DATA/images", "${SOME_DATA}/images", "~/images"):
        assert len(ImageFolder(root=root).build("test")) == 6


def test_ram_keeps_the_same_pixels(folder: Path) -> None:
    disk, ram = (
        ImageFolder(root=str(folder)).build("train"),
        ImageFolder(root=str(folder), cache="ram").build("train"),
    )
    array = ram.array()
    assert disk.array() is None and array is not None and array.shape == (18, 16, 20, 3)
    for index in (0, 17):
        assert np.array_equal(np.asarray(disk.image(index)), array[index])
    Image.new("L", (9, 9), 7).save(folder / "train" / "cat" / "9.png")
    mixed = ImageFolder(root=str(folder), cache="ram").build("train")
    assert mixed.array() is None and mixed.image(18).mode == "L" and mixed.image(18).size == (9, 9)


def test_broken_image_is_refused_by_name(folder: Path) -> None:
    broken = folder / "train" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    source = ImageFolder(root=str(folder)).build("train")
    source.image(6)
    with pytest.raises(UserError, match=rf"^{broken}: does not decode as an image \(.*\); .*on_error: skip$"):
        source.image(7)
    with pytest.raises(UserError, match=str(broken)):
        ImageFolder(root=str(folder), cache="ram").build("train")


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_broken_images_are_skipped_counted_and_logged_once(
    folder: Path, caplog: pytest.LogCaptureFixture, cache: str
) -> None:
    (folder / "train" / "bee" / "1.png").write_bytes(b"no picture")
    (folder / "train" / "cat" / "5.png").write_bytes(b"")
    reader = ImageFolder(root=str(folder), on_error="skip", cache=cache)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = reader.build("train")
    assert len(caplog.records) == 1 and "skipping 2 of 18" in caplog.text and "bee/1.png" in caplog.text
    assert source.skipped == 2 and np.bincount(source.labels).tolist() == [6, 5, 5]
    for index in range(len(source)):
        source.image(index)


def test_the_scan_is_remembered_until_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transmamba.data.images import decoding
    from transmamba.data.images import folder as image_folder

    broken = folder / "train" / "ant" / "0.png"
    good = broken.read_bytes()
    broken.write_bytes(b"no picture")
    reader = ImageFolder(root=str(folder), on_error="skip")
    assert reader.build("train").skipped == 1
    calls: list[Path] = []

    def counted(path: Path, name: str) -> Image.Image:
        calls.append(path)
        return decoding.decode(path, name)

    monkeypatch.setattr(image_folder, "decode", counted)
    assert reader.build("train").skipped == 1 and calls == [broken]
    broken.write_bytes(good)
    assert reader.build("train").skipped == 0 and len(calls) == 19


def test_a_class_without_a_readable_image_is_refused(folder: Path) -> None:
    for path in (folder / "train" / "ant").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="ant: none of its images decodes"):
        ImageFolder(root=str(folder), on_error="skip").build("train")


def _missing_root(folder: Path) -> str:
    shutil.rmtree(folder)
    return rf"^{folder} does not exist; expected a folder with train/CLASS/"


def _no_train(folder: Path) -> str:
    shutil.rmtree(folder / "train")
    return rf"^{folder}: no folder train/; expected train/CLASS"


def _no_classes(folder: Path) -> str:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    return rf"^{folder}/train: no class folders; expected train/CLASS/\*.jpg"


def _empty_class(folder: Path) -> str:
    (folder / "train" / "dog").mkdir()
    (folder / "test" / "dog").mkdir()
    return rf"^{folder}/train/dog: no images; expected .png, .jpg"


def _other_classes(folder: Path) -> str:
    (folder / "test" / "ant").rename(folder / "test" / "cow")
    return rf"^{folder}: train and test have different classes \(only in train: ant; only in test: cow\)"


@pytest.mark.parametrize("damage", [_missing_root, _no_train, _no_classes, _empty_class, _other_classes])
def test_mistakes_are_one_line_naming_the_path(folder: Path, damage) -> None:
    expected = damage(folder)
    with pytest.raises(UserError, match=expected) as caught:
        ImageFolder(root=str(folder)).build("train")
    assert "\n" not in str(caught.value)


def test_no_test_folder_matters_only_when_it_is_asked_for(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    assert len(ImageFolder(root=str(folder)).build("train")) == 18
    with pytest.raises(UserError, match="no folder test/ or val/ or validation/"):
        ImageFolder(root=str(folder)).build("test")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder(folder: Path) -> None:
    (folder / "train" / "ant").chmod(0)
    try:
        with pytest.raises(UserError, match=r"ant cannot be read \(Permission denied\)"):
            ImageFolder(root=str(folder)).build("train")
    finally:
        (folder / "train" / "ant").chmod(0o755)
