"""Drawn scenes as pairs, folders of pictures alone, and the real data that stands in for downloads."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pair_files import encoded, pixels

from transmamba.config.load import Part
from transmamba.config.registry import PAIRS
from transmamba.data.pairs.pictures import Pictures
from transmamba.data.pairs.scenes import DrawnScenes
from transmamba.data.scenes import SPLITS, Scenes
from transmamba.errors import UserError


@pytest.mark.parametrize("split", [name for name in SPLITS if name != "train"])
def test_scenes_are_the_scenes_with_their_first_wordings(split: str) -> None:
    source = DrawnScenes(side=24, count_test=5, split_test=split, captions_test=4, seed=3).build("test")
    scenes = Scenes(split=split, count=5, side=24, seed=3)
    assert len(source) == 5
    for number in range(5):
        assert np.array_equal(np.asarray(source.image(number)), scenes.picture(number))
        expected = tuple(scenes.caption(number, variant) for variant in range(4))
        assert source.captions(number) == expected and len(set(expected)) == 4


def test_training_has_every_wording() -> None:
    source = DrawnScenes(side=16, count_train=3).build("train")
    assert all(len(set(source.captions(n))) == 12 for n in range(3))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split_test": "train"}, "split_train and split_test are both 'train'"),
        ({"split_test": "tset"}, "split 'tset' is unknown; did you mean 'test'"),
        ({"captions_test": 13}, "captions_test 13: write a number from 1 to 12"),
        ({"captions_train": 0}, "captions_train 0: write a number from 1 to 12"),
        (
            {"captions_test": 5, "split_test": "unseen_templates"},
            "captions_test 5: write a number from 1 to 4",
        ),
        ({"count_train": 0}, "count 0: write how many items there are"),
        ({"side": 9}, "side 9: write a number of pixels from 16"),
    ],
)
def test_mistakes_about_scenes(options: dict[str, int | str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        DrawnScenes(**options).build("train")  # type: ignore[arg-type]


def test_pictures_are_found_at_any_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["a.png", "b/c/d.PNG", "b/e.png", "z.png"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(pixels(number)))
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / name).write_text("no picture")
    with caplog.at_level(logging.WARNING, logger="transmamba.data"):
        source = Pictures(train=str(tmp_path)).build("train")
    assert [source.name(n) for n in range(4)] == names and len(source) == 4  # type: ignore[attr-defined]
    assert all(np.array_equal(np.asarray(source.image(n)), pixels(n)) for n in range(4))
    assert source.captions(2) == () and "left out 1 files that are no images: 1 .txt" in caplog.text


def test_a_folder_may_be_the_one_we_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encoded(pixels(0)))
    monkeypatch.chdir(tmp_path)
    for here in (".", "../" + tmp_path.name, str(tmp_path) + "/", "./"):
        assert np.array_equal(np.asarray(Pictures(test=here).build("test").image(0)), pixels(0))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert len(Pictures(test="..").build("test")) == 1


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{tmp_path}: no images; expected .png, .jpg"):
        Pictures(train=str(tmp_path)).build("train")
    with pytest.raises(UserError, match="gone does not exist; expected a folder of pictures"):
        Pictures(train=str(tmp_path / "gone")).build("train")
    with pytest.raises(UserError, match="reader pictures was given no test split; write test: as well"):
        Pictures(train=str(tmp_path)).build("test")


# --- real data ---

FIGURES = "$TRANSMAMBA_DATA/textbook_figures"
REAL = {
    "figures": {
        "name": "table",
        "train": f"{FIGURES}/train.zip",
        "test": f"{FIGURES}/val.zip",
        "image": "file",
        "caption": ["alt", "caption"],
    },
    "emoji": {
        "name": "table",
        "train": "$TRANSMAMBA_DATA/emoji/noto72.zip",
        "test": "$TRANSMAMBA_DATA/emoji/blob72.zip",
        "image": "file",
        "caption": "name",
    },
    "exercises": {
        "name": "table",
        "train": "$TRANSMAMBA_DATA/exercises/exercises_128.zip",
        "image": "images",
        "caption": ["name", "instructions"],
    },
}
COUNTS = {"figures": (6232, 767), "emoji": (1655, 1467), "exercises": (1746, None)}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", REAL)
def test_real_pairs_are_read_by_a_config_alone(
    name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSMAMBA_DATA", str(shared_data))
    reader = Part(PAIRS)._build(REAL[name])
    for split, count in zip(("train", "test"), COUNTS[name], strict=True):
        if count is None:
            continue
        archive = Path(str(REAL[name][split]).replace("$TRANSMAMBA_DATA", str(shared_data)))
        if not archive.is_file():
            pytest.skip(f"{archive} is absent; set TRANSMAMBA_DATA to the folder of shared data")
        source = reader.build(split)
        assert len(source) == count and source.skipped == 0
        pictures = {info.filename: info for info in zipfile.ZipFile(archive).infolist()}
        for number in range(0, count, count // 7):
            assert source.captions(number) and source.name(number) in pictures
            assert min(source.image(number).size) > 10
