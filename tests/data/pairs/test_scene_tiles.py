"""Tiles and photographs of drawn scenes as readers give them: which pictures stand in which split."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pair_files import encoded
from PIL import Image

from transmamba.config.load import Part, dump
from transmamba.config.registry import PAIRS
from transmamba.data.pairs import scene_tiles
from transmamba.data.pairs.scene_tiles import Tiles
from transmamba.data.pairs.scenes import DrawnScenes
from transmamba.data.scenes import SPLITS
from transmamba.errors import UserError

CLASSES = ("ant", "bee", "cat")
# the green that tells where a picture comes from
TRAIN, TEST = 200, 100


def noise(side: int, number: int, green: int | None = None) -> npt.NDArray[np.uint8]:
    pixels = np.random.default_rng(number).integers(0, 230, (side, side, 3), dtype=np.uint8)
    if green is not None:
        pixels[..., 1] = green
    return pixels


def emoji_archive(path: Path, names: list[str], green: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number, _ in enumerate(names):
            picture = Image.new("RGBA", (8, 6), (number, green, 0, 255))
            picture.putpixel((0, 0), (0, 0, 0, 0))
            archive.writestr(f"{number}.png", encoded(picture))
        rows = [{"file": f"{number}.png", "name": name} for number, name in enumerate(names)]
        archive.writestr("index.json", json.dumps(rows))


def write(root: Path) -> dict[str, Any]:
    """Small data sets of every sort; the options that name them."""
    labels = np.arange(20) % 10
    digits = {
        f"{split}_{what}": array
        for split, green in (("train", TRAIN), ("test", TEST))
        for what, array in (("images", np.full((20, 7, 7), green, dtype=np.uint8)), ("labels", labels))
    }
    np.savez(root / "digits.npz", **digits)
    for split, green in (("train", TRAIN), ("test", TEST)):
        for number, name in enumerate(CLASSES):
            (root / "pictures" / split / name).mkdir(parents=True)
            Image.fromarray(noise(12, number, green)).save(root / "pictures" / split / name / "0.png")
        emoji_archive(root / f"{split}.zip", [f"thing {n}" for n in range(30)], green)
        (root / "grounds" / split).mkdir(parents=True)
        Image.fromarray(noise(40, green)).save(root / "grounds" / split / "photo.png")
        chart = np.full((40, 40, 3), 255, dtype=np.uint8)
        chart[:10] = noise(40, 3)[:10]
        Image.fromarray(chart).save(root / "grounds" / split / "chart.png")
    table = {"name": "table", "image": "file", "caption": "name"}
    return {
        "tiles": {
            "emoji": {**table, "train": str(root / "train.zip"), "test": str(root / "test.zip")},
            "digits": {"name": "npz", "path": str(root / "digits.npz")},
            "pictures": {"name": "image_folder", "root": str(root / "pictures")},
            "filling": 0.3,
        },
        "photographs": {
            "name": "pictures",
            **{split: str(root / "grounds" / split) for split in ("train", "test")},
        },
    }


def reader(options: dict[str, Any], **others: Any) -> Any:
    usual = {"name": "scenes", "side": 32, "count_train": 60, "count_test": 60}
    return Part(PAIRS)._build({**usual, **options, **others})


@pytest.mark.parametrize("split", SPLITS)
def test_training_pictures_stand_in_training_and_test_pictures_in_all_other_splits(
    tmp_path: Path, split: str
) -> None:
    other = "val" if split == "train" else "train"
    config = reader(write(tmp_path), split_train=split, split_test=other, captions_train=4)
    scenes = config.build("train").scenes
    stock, green = scenes.stock, TRAIN if split == "train" else TEST
    for number in range(20):
        for thing in scenes.program(number).objects:
            if thing.kind.startswith("handwritten"):
                assert (stock.tile(thing) == green).all()
            elif thing.kind.startswith("photo"):
                assert (stock.tile(thing)[1] == green).all()
            elif thing.kind.endswith(" emoji"):
                style = TEST if split == "unseen_style" else TRAIN
                assert set(np.unique(stock.tile(thing)[1])) == {0, style}
    assert len(stock.photographs) == 1 and np.array_equal(stock.photographs[0], noise(40, green))


def test_all_sorts_come_and_pictures_are_the_same_after_pickling(tmp_path: Path) -> None:
    source = reader(write(tmp_path)).build("train")
    again = pickle.loads(pickle.dumps(source))
    said = " ".join(text for number in range(60) for text in source.captions(number))
    assert all(word in said for word in ("emoji", "handwritten", "photo of", "photograph"))
    for number in range(30):
        assert np.array_equal(np.asarray(source.image(number)), np.asarray(again.image(number)))
        assert source.captions(number) == again.captions(number)


def test_a_transparent_picture_is_squared_and_multiplied_by_its_alpha(tmp_path: Path) -> None:
    stock = reader(write(tmp_path)).build("train").scenes.stock
    picture = stock.emoji["thing 7"]
    assert picture.shape == (4, 8, 8) and (picture[:, [0, -1]] == 0).all()
    assert (picture[:, 1, 0] == 0).all() and picture[:, 4, 4].tolist() == [7, TRAIN, 0, 255]


def test_names_that_lists_cannot_hold_and_that_one_style_lacks_are_left_out(tmp_path: Path) -> None:
    options = write(tmp_path)
    both = ["owl", "kiss: man, man", "rescuer’s helmet", "button (blood type)", "owl"]
    emoji_archive(tmp_path / "train.zip", [*both, "only here"], TRAIN)
    emoji_archive(tmp_path / "test.zip", both[::-1], TEST)
    stock = reader(options).build("train").scenes.stock
    assert list(stock.emoji) == ["owl", "rescuer's helmet"]
    assert stock.emoji["owl"][0, 4, 4] == 0  # the first of a name
    emoji_archive(tmp_path / "test.zip", ["other"], TEST)
    with pytest.raises(UserError, match="no name is in both styles"):
        reader(options).build("train")


def test_photographs_are_told_from_charts(tmp_path: Path) -> None:
    options = write(tmp_path)
    flat = noise(40, 5)
    flat[:20] = (180, 190, 240)  # most of it one colour
    grey = np.repeat(noise(40, 6)[..., :1], 3, axis=-1)  # few colours
    for name, pixels in (("flat", flat), ("grey", grey)):
        Image.fromarray(pixels).save(tmp_path / "grounds" / "train" / f"{name}.png")
    assert len(reader(options).build("train").scenes.stock.photographs) == 1
    (tmp_path / "grounds" / "train" / "photo.png").unlink()
    with pytest.raises(UserError, match="photographs: none of the pictures is one"):
        reader(options).build("train")


def test_large_photographs_are_kept_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = write(tmp_path)
    monkeypatch.setattr(scene_tiles, "_LARGEST", 20)
    (photograph,) = reader(options).build("train").scenes.stock.photographs
    whole = Image.open(tmp_path / "grounds" / "train" / "photo.png").convert("RGB")
    assert photograph.shape == (20, 20, 3) and photograph.flags.c_contiguous
    assert np.array_equal(photograph, np.asarray(whole.resize((20, 20))))


def test_clips_have_tiles_too(tmp_path: Path) -> None:
    usual = {"name": "scene_clips", "side": 24, "frames": 3, "count_train": 40, "count_test": 4}
    given = write(tmp_path)
    given["tiles"]["filling"] = 0.0
    config = Part(PAIRS)._build({**usual, **given})
    source = config.build("train")
    said = " ".join(text for number in range(40) for text in source.captions(number))
    assert "emoji" in said and "handwritten" in said and "photograph" in said
    assert len(source.frames(0)) == 3 and source.frames(0)[0].size == (24, 24)


def test_a_config_reads_no_data_and_round_trips(tmp_path: Path) -> None:
    options = write(tmp_path)
    options["tiles"]["digits"]["path"] = "nowhere.npz"
    config = reader(options)
    assert Part(PAIRS)._build(dump(config)) == config
    with pytest.raises(UserError, match=r"nowhere\.npz does not exist"):
        config.build("train")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Tiles(shapes=False), "tiles has no sort of objects; write shapes: true"),
        (lambda: Tiles(filling=0.2), "filling 0.2: there are no tiles; write emoji"),
        (lambda: Tiles(filling=-0.2), "filling -0.2: write a share"),
        (lambda: Tiles(smallest=0.5), "smallest 0.5: write a share of the side"),
    ],
)
def test_mistakes_about_tiles(make: Callable[[], Tiles], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


def test_without_tiles_nothing_is_read() -> None:
    scenes = DrawnScenes(count_train=3).build("train").scenes  # type: ignore[attr-defined]
    assert scenes.stock.kinds == {} and scenes.stock.grounds == ("textures", "plain")


@pytest.mark.shared_data
def test_real_emoji_digits_and_photographs(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSMAMBA_DATA", str(shared_data))
    root = "$TRANSMAMBA_DATA"
    table = {"name": "table", "image": "file"}
    tiles = {
        "emoji": {
            **table,
            "caption": "name",
            "train": f"{root}/emoji/noto72.zip",
            "test": f"{root}/emoji/blob72.zip",
        },
        "digits": {"name": "npz", "path": f"{root}/mnist/mnist.npz"},
    }
    figures = {**table, "caption": ["alt", "caption"], "test": f"{root}/textbook_figures/val.zip"}
    needed = ("emoji/noto72.zip", "emoji/blob72.zip", "mnist/mnist.npz", "textbook_figures/val.zip")
    if not all((shared_data / name).is_file() for name in needed):
        pytest.skip(f"{shared_data} lacks one of {', '.join(needed)}")
    source = reader({"tiles": tiles, "photographs": figures}, captions_test=12).build("test")
    stock = source.scenes.stock
    assert len(stock.kinds["emoji"]) == 1380 and "grinning face emoji" in stock.kinds["emoji"]
    assert stock.kinds["digits"][3] == "handwritten 3" and 100 < len(stock.photographs) < 200
    assert {source.image(number).size for number in range(20)} == {(32, 32)}
    texts = [text for number in range(60) for text in source.captions(number)]
    assert max(len(text.split()) for text in texts) < 77 and all(text.isprintable() for text in texts)
