from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from transmamba.data.images import decoding
from transmamba.data.images.folder import ImageFolder, suffixes
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


def test_every_kind_that_pillow_decodes_is_read(tmp_path: Path) -> None:
    names = [
        "1.jpg",
        "2.tif",
        "3.tiff",
        "4.gif",
        "5.ppm",
        "6.pgm",
        "7.jfif",
        "8.JPG",
        "9.tga",
        "10.jp2",
        "11.mpo",
    ]
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for name in names:
            kind = "JPEG" if name.lower().endswith(("jfif", "jpg", "mpo")) else None
            Image.new("RGB", (8, 8), "white").save(tmp_path / split / "a" / name, format=kind)
    source = ImageFolder(root=str(tmp_path)).build("train")
    assert {source.path(index).name for index in range(len(source))} == set(names)  # type: ignore[attr-defined]
    assert all(np.asarray(source.image(index).convert("L")).min() > 250 for index in range(len(source)))
    # what others would run, or what is no picture
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5", ".txt", ""} & suffixes()


def test_what_is_left_out_is_said_in_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.txt", "b.TXT", "c.svg", "README", ".DS_Store"):
        (folder / "train" / "ant" / name).write_text("no picture")
    (folder / "train" / "bee" / "d.csv").write_text("no picture")
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = ImageFolder(root=str(folder)).build("train")
    assert len(source) == 18 and len(caplog.records) == 1
    (record,) = caplog.records
    expected = "left out 5 files that are no images: 2 .txt, 1 .svg, 1 without a suffix, 1 .csv"
    assert sorted(record.getMessage().split(": ", 1)[1].split(", ")) == sorted(expected.split(", "))


def _names(source: object) -> list[str]:
    return [os.fsdecode(path) for path in source.paths]  # type: ignore[attr-defined]


def test_links_are_followed_but_no_folder_is_visited_twice(folder: Path, tmp_path: Path) -> None:
    before = _names(ImageFolder(root=str(folder)).build("train"))
    ant = folder / "train" / "ant"
    (ant / "self").symlink_to(ant)
    (ant / "above").symlink_to(folder)
    (ant / "beside").symlink_to(folder / "train" / "bee")
    assert _names(ImageFolder(root=str(folder)).build("train")) == before
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (4, 4)).save(elsewhere / "x.png")
    for name in ("one", "two"):
        (ant / name).symlink_to(elsewhere)
    after = _names(ImageFolder(root=str(folder)).build("train"))
    assert set(after) - set(before) == {"ant/one/x.png"}  # the first by name, wherever it is read


def test_a_class_folder_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "cat").rename(tmp_path / "cats")
    (folder / "train" / "cat").symlink_to(tmp_path / "cats")
    assert np.bincount(ImageFolder(root=str(folder)).build("train").labels).tolist() == [6, 6, 6]


def test_names_of_classes_that_look_alike(folder: Path) -> None:
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301")):
        (folder / split / "ant").rename(folder / split / name)
    with pytest.raises(UserError, match=r"different classes \(only in train: .*look alike"):
        ImageFolder(root=str(folder)).build("train")


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
    from transmamba.data.images import folder as reading

    broken = folder / "train" / "ant" / "0.png"
    good = broken.read_bytes()
    broken.write_bytes(b"no picture")
    reader = ImageFolder(root=str(folder), on_error="skip")
    assert reader.build("train").skipped == 1
    calls: list[Path] = []

    def counted(path: Path, name: str) -> Image.Image:
        calls.append(path)
        return decoding.decode(path, name)

    monkeypatch.setattr(reading, "decode", counted)
    assert reader.build("train").skipped == 1 and calls == [broken]
    broken.write_bytes(good)
    assert reader.build("train").skipped == 0 and len(calls) == 19


def test_a_link_to_nothing_is_skipped_too(folder: Path) -> None:
    (folder / "train" / "ant" / "9.png").symlink_to(folder / "gone.png")
    assert ImageFolder(root=str(folder), on_error="skip").build("train").skipped == 1


def test_a_refused_image_does_not_wait_for_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def work(number: int) -> None:
        looked_at.append(number)
        if number == 3:
            raise UserError("3 is broken")
        time.sleep(0.001)

    with pytest.raises(UserError, match="3 is broken"):
        list(decoding.in_threads(range(4000), work, "looking"))
    assert len(looked_at) < 2000


def test_many_items_come_in_order_with_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(decoding, "_LONG", 50)
    monkeypatch.setattr(
        "rich.progress.track", lambda results, what, total, **_: seen.append(total) or results
    )
    for count in (49, 51):
        assert list(decoding.in_threads(np.arange(count), lambda n: n * n, "x")) == [
            n * n for n in range(count)
        ]
    assert seen == [51]


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
