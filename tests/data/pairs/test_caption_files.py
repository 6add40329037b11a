"""COCO's caption files, and those of Flickr8k and Flickr30k."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pair_files import coco, karpathy, plain, write_pictures

from transmamba.data.pairs.coco import Coco
from transmamba.data.pairs.flickr import Flickr
from transmamba.data.pairs.stored import Folder
from transmamba.errors import UserError

CONTENT = {"train": plain("train"), "test": plain("test", 3)}


def captions(source: Any) -> dict[str, tuple[str, ...]]:
    return {source.name(n): source.captions(n) for n in range(len(source))}


# --- the folder ---


def test_a_folder_that_cannot_be_asked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no file is called is absent, as what is not there; of a share that fails nothing is known."""
    (tmp_path / "a.png").touch()
    folder = Folder(tmp_path)
    assert folder.has("a.png")
    assert not any(map(folder.has, ("b.png", "a.png/b.png", "x" * 5000, "")))
    for code in (errno.EIO, errno.EACCES, errno.ESTALE):

        def failing(self: Path, *, follow_symlinks: bool = True, code: int = code) -> Any:
            raise OSError(code, "it failed", str(self))

        with monkeypatch.context() as patched:
            patched.setattr(Path, "stat", failing)
            with pytest.raises(UserError, match=r"a\.png cannot be looked up .*it failed"):
                folder.has("a.png")


# --- COCO ---


@pytest.fixture
def annotated(tmp_path: Path) -> dict[str, Any]:
    return coco(tmp_path, CONTENT)


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_official_layout_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for year_split, split in (("train2017", "train"), ("val2017", "test")):
        write_pictures(tmp_path / year_split, CONTENT[split])
        images = [{"id": n, "file_name": name} for n, name in enumerate(CONTENT[split])]
        said = [{"image_id": n, "caption": f"{split} {n}"} for n in range(len(images))]
        (tmp_path / "annotations" / f"captions_{year_split}.json").write_text(
            json.dumps({"info": {}, "images": images, "annotations": said[::-1]})
        )
    for split in CONTENT:
        source = Coco(root=str(tmp_path)).build(split)
        assert captions(source) == {name: (f"{split} {n}",) for n, name in enumerate(CONTENT[split])}


def test_what_does_not_join_is_left_out(annotated: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    path = Path(annotated["root"]) / "train.json"
    said = json.loads(path.read_text())["annotations"]
    said = [a for a in said if a["image_id"] != 0]  # p0.png has none, p2.png an empty one
    said[[a["image_id"] for a in said].index(14)]["caption"] = " \n"
    change(path, annotations=[*said, {"image_id": 5, "caption": "of no picture"}])
    (path.parent / "train_pictures" / "p4.png").unlink()
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = Coco(**annotated).build("train")
    assert list(captions(source)) == ["p1.png", "p3.png", "p5.png"] and source.skipped == 4
    (record,) = caplog.records
    for part in (
        "left out 4 pairs",
        "2 without a caption (first: p0.png)",
        "1 of no picture (first: annotation",
    ):
        assert part in record.getMessage()
    assert "1 whose picture is not there" in record.getMessage()


def test_another_file_or_another_folder_is_told(annotated: dict[str, Any]) -> None:
    path = Path(annotated["root"]) / "train.json"
    with pytest.raises(UserError, match=r"none of its 6 pictures is in .*do captions and pictures belong"):
        write_pictures(path.parent / "others", {f"x{name}": pair for name, pair in CONTENT["test"].items()})
        Coco(**annotated | {"train_images": "others"}).build("train")
    whole = path.read_text()
    for keys, says in (
        (
            {"annotations": [{"image_id": 0, "bbox": []}]},
            "annotations 0 has no 'caption', only image_id, bbox",
        ),
        ({"annotations": {}}, "no list 'annotations', only images, annotations"),
        ({"images": [{"id": 0}]}, "images 0 has no 'file_name', only id"),
        ({"images": [{"id": 0, "file_name": "a"}] * 2}, "several images have one id"),
        ({"images": [{"id": [0], "file_name": "a"}]}, r"images 0 has id \[0\], no number or text"),
        ({"annotations": [{"image_id": {}, "caption": "a"}]}, r"annotations 0 has image_id \{\}, no number"),
        ({"annotations": [{"image_id": 0, "caption": 3}]}, "annotation 0: 3 is no caption"),
        ({"annotations": []}, r"holds no pairs: 6 without a caption \(first: p0.png\)"),
    ):
        change(path, **keys)
        with pytest.raises(UserError, match=says) as caught:
            Coco(**annotated).build("train")
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        path.write_text(whole)
    path.write_text(whole[:50])
    with pytest.raises(UserError, match=r"train.json cannot be read \(.*\); expected a JSON file"):
        Coco(**annotated).build("train")
    path.unlink()
    with pytest.raises(UserError, match=r"train.json does not exist; expected a caption file"):
        Coco(**annotated).build("train")


# --- Karpathy's splits ---


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("sentences", 3, "sentences is 3; write a list of objects with 'raw'"),
        ("sentences", ["a"], r"sentences is \['a'\]; write a list of objects"),
        ("filename", 3, "filename is 3; write text"),
        ("filepath", ["a"], r"filepath is \['a'\]; write text"),
    ],
)
def test_karpathy_s_record_of_another_form_is_told(name: str, value: Any, says: str, tmp_path: Path) -> None:
    options = karpathy(tmp_path, {"train": plain("train", 2)})
    path = Path(options["captions"])
    found = json.loads(path.read_text())
    found["images"][1][name] = value
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=f"image 1: {says}"):
        Flickr(**options).build("train")


def test_karpathy_s_splits_are_chosen_by_name(tmp_path: Path) -> None:
    names = ("train", "restval", "val", "test")
    content = {name: plain("train", 2) for name in names}
    options = karpathy(tmp_path, content)
    found = {split: list(captions(Flickr(**options).build(split))) for split in ("train", "test")}
    assert found["train"] == [f"{name}/p{n}.png" for name in ("train", "restval") for n in range(2)]
    assert found["test"] == ["test/p0.png", "test/p1.png"]
    assert captions(Flickr(**options).build("test"))["test/p1.png"] == content["test"]["p1.png"][1]
    assert list(captions(Flickr(**options, test_splits=("val",)).build("test"))) == [
        "val/p0.png",
        "val/p1.png",
    ]
    with pytest.raises(UserError, match=r"no split 'dev'; known: restval, test, train, val"):
        Flickr(**options, test_splits=("dev",)).build("test")


def test_another_json_is_told(tmp_path: Path) -> None:
    options = karpathy(tmp_path, {"train": plain("train", 2)})
    path = Path(options["captions"])
    for content, says in (
        ([], "no list 'images'; expected Karpathy's file"),
        (
            {"images": [{"id": 0, "file_name": "a"}]},
            r"image 0 has no 'filename', only id, file_name; .*name: coco",
        ),
        ({"images": [{"filename": "a", "sentences": []}]}, "image 0 has no 'split'"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=says):
            Flickr(**options).build("train")


# --- lines ---

TOKENS = (
    "p0.png#0\tone | with a bar\np1.png#0\tanother\np0.png#1\ta second , of p0\n\np1.png#1\t \n"
    "p2.png#0\tlast\n"
)
BARS = (
    "image_name| comment_number| comment\np0.png| 0| one | with a bar\np1.png| 0| another\n"
    "p0.png| 1| a second , of p0\np1.png| 1| \np2.png| 0| last\n"
)


@pytest.fixture(params=["results.token", "results.csv"])
def lines(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    write_pictures(tmp_path / "images", CONTENT["train"])
    path = tmp_path / request.param
    path.write_text(TOKENS if path.suffix == ".token" else BARS)
    return {"captions": str(path), "images": str(tmp_path / "images")}


def test_lines_of_either_kind(lines: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = Flickr(**lines).build("train")
    expected = {
        "p0.png": ("one | with a bar", "a second , of p0"),
        "p1.png": ("another",),
        "p2.png": ("last",),
    }
    assert captions(source) == expected and source.skipped == 1
    assert "left out 1 pairs: 1 without a caption (first: line 5)" in caplog.text
    with pytest.raises(UserError, match="does not say which pictures are for testing; write test_names"):
        Flickr(**lines).build("test")


def test_lists_of_names_make_the_splits(lines: dict[str, Any], tmp_path: Path) -> None:
    test, train = tmp_path / "test.txt", tmp_path / "train.txt"
    test.write_text("p1.png\nnot in the file.png\n")
    train.write_text("p2.png\n")

    def names(split: str, **options: str) -> list[str]:
        return list(captions(Flickr(**lines, **options).build(split)))

    assert names("train", test_names=str(test)) == ["p0.png", "p2.png"]
    assert names("test", test_names=str(test)) == ["p1.png"]
    assert names("train", train_names=str(train), test_names=str(test)) == ["p2.png"]
    test.write_text("q.png\n")
    with pytest.raises(UserError, match=r"test.txt: names no picture of .* \(first: q.png\)"):
        names("train", test_names=str(test))
    test.write_text("\n")
    with pytest.raises(UserError, match=r"test.txt: names no picture; write the name of one a line"):
        names("test", test_names=str(test))


def test_lines_of_another_form(lines: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    path = Path(lines["captions"])
    whole = path.read_text()
    path.write_text(whole + "2199200615.jpg   4   A dog runs\n")  # as in the published results.csv
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        assert Flickr(**lines).build("train").skipped == 2
    assert f"1 in a line of another form (first: line {1 + whole.count(chr(10))})" in caplog.text
    path.write_text("image,caption\np0.png,one\n")
    with pytest.raises(
        UserError, match=r"no line of a form that is known \(first: image,caption\).*name: table"
    ):
        Flickr(**lines).build("train")
