"""Every reader of pictures with captions keeps the contract of a `PairSource`, whatever pictures it meets."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_files import LAYOUTS, SPLITS, encoded, pixels, plain
from PIL import Image

from transmamba.config.registry import PAIRS
from transmamba.core.preprocessing import ToChannels
from transmamba.data.pairs.source import PairSource
from transmamba.errors import UserError


@pytest.fixture(params=["scenes", *LAYOUTS])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "scenes":
        return PAIRS["scenes"](side=16, count_train=6, count_test=6, captions_test=2)
    (tmp_path / "data").mkdir()
    options = LAYOUTS[request.param](tmp_path / "data", {split: plain(split) for split in SPLITS})
    return PAIRS[request.param](**options)


def everything(source: PairSource) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(np.asarray(source.image(n)).tobytes(), source.captions(n)) for n in range(len(source))]


@pytest.mark.parametrize("split", SPLITS)
def test_a_source_is_pictures_with_captions_in_an_order_that_stays(reader: Any, split: str) -> None:
    source = reader.build(split)
    assert len(source) == 6 and source.skipped == 0
    found = everything(source)
    assert found == everything(source) == everything(reader.build(split))
    assert len({picture for picture, _ in found}) == 6
    for _, captions in found:
        assert isinstance(captions, tuple) and all(isinstance(text, str) and text for text in captions)
        assert bool(captions) == (reader.name != "pictures")
    if reader.name != "scenes":
        expected = plain(split)
        for number, (picture, captions) in enumerate(expected.values()):
            assert encoded(np.asarray(source.image(number))) == picture
            assert source.captions(number) == (captions if reader.name != "pictures" else ())
    assert source.array() is None
    with pytest.raises(IndexError):
        source.image(6)


def test_a_source_reaches_a_process_that_is_not_forked(reader: Any) -> None:
    source = reader.build("train")
    everything(source)  # what is opened by then must not be in the way
    assert everything(pickle.loads(pickle.dumps(source))) == everything(source)


def in_a_child(source: PairSource, numbers: list[int], answers: Any) -> None:
    answers.put([(n, np.asarray(source.image(n)).tobytes()) for n in numbers])


def test_forked_processes_do_not_disturb_each_other(reader: Any) -> None:
    source = reader.build("train")
    expected = everything(source)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    orders = [[*range(6)] * 30, [*reversed(range(6))] * 30]
    children = [context.Process(target=in_a_child, args=(source, order, answers)) for order in orders]
    for child in children:
        child.start()
    for _ in children:
        assert all(expected[n][0] == picture for n, picture in answers.get())
    for child in children:
        child.join()


def test_the_splits_differ_and_there_are_two(reader: Any) -> None:
    pictures = [{picture for picture, _ in everything(reader.build(split))} for split in SPLITS]
    assert not pictures[0] & pictures[1]
    with pytest.raises(UserError, match="split 'dev': a data reader has the splits 'train' and 'test'"):
        reader.build("dev")


# --- kinds of pictures ---

NOISE = pixels(3)
UPRIGHT = {  # EXIF orientation -> what turns the stored rows and columns upright (EXIF 2.32, 4.6.4)
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def turned(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "webp" else {}
    return encoded(NOISE, kind, exif=exif, **options)


def over_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def frames(kind: str) -> bytes:
    red, blue = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    return encoded(
        red, kind, save_all=True, append_images=[blue], **({"lossless": True} if kind == "webp" else {})
    )


def palette_with_a_hole() -> bytes:
    image = Image.new("P", (8, 6), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(0, (0, 0, 4, 6))
    return encoded(image, "gif", transparency=0)


GREY, DEEP = pixels(1, channels=1)[..., 0], np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300
RED = np.broadcast_to(np.array([255, 0, 0]), (6, 8, 3))
HOLE = np.full((6, 8, 3), 255)
HOLE[:, 4:] = (10, 200, 30)
CLEAR = pixels(2, channels=4)
KINDS: dict[str, tuple[bytes, np.ndarray, float]] = {  # file name -> content, expected RGB, tolerance
    "grey.png": (encoded(GREY), np.repeat(GREY[..., None], 3, axis=2), 0),
    "alpha.png": (encoded(CLEAR), over_white(CLEAR), 1),
    "deep.png": (encoded(Image.fromarray(DEEP)), np.repeat((DEEP // 256)[..., None], 3, axis=2), 0),
    "cmyk.jpg": (encoded(Image.new("CMYK", (8, 6), (255, 0, 0, 0)), "jpeg"), 255 - RED, 3),
    "hole.webp": (encoded(CLEAR, "webp", lossless=True, exact=True), over_white(CLEAR), 1),
    "moving.png": (frames("png"), RED, 0),
    "moving.webp": (frames("webp"), RED, 1),
    **{f"turned{n}.png": (turned(n, "png"), UPRIGHT[n](NOISE), 0) for n in UPRIGHT},
    "turned6.webp": (turned(6, "webp"), UPRIGHT[6](NOISE), 0),
    "turned9.png": (turned(9, "png"), NOISE, 0),
    "nonsense.png": (encoded(NOISE, exif=b"Exif\0\0no EXIF at all"), NOISE, 0),
}
FOREIGN = {  # kinds that WebDataset's layout does not name
    "moving.gif": (frames("gif"), RED, 0),
    "hole.gif": (palette_with_a_hole(), HOLE, 0),
    "turned6.tiff": (turned(6, "tiff"), UPRIGHT[6](NOISE), 0),
    "bits.pbm": (
        encoded(Image.fromarray(GREY > 99), "ppm"),
        np.repeat((GREY > 99)[..., None] * 255, 3, 2),
        0,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_pictures_of_every_kind_are_upright_rgb_of_the_first_frame(name: str, tmp_path: Path) -> None:
    kinds = KINDS | (FOREIGN if name != "webdataset" else {})
    kinds = dict(sorted(kinds.items()))
    if name == "webdataset":  # one name a sample
        kinds = {f"{n}{Path(kind).suffix}": kinds[kind] for n, kind in enumerate(kinds)}
    content = {"train": {kind: (picture, (f"it is {kind}",)) for kind, (picture, _, _) in kinds.items()}}
    options = LAYOUTS[name](tmp_path, content)
    source = PAIRS[name](**options).build("train")
    assert len(source) == len(kinds)
    for number, (kind, (_, expected, tolerance)) in enumerate(kinds.items()):
        image = ToChannels(3)(source.image(number))
        assert image.mode == "RGB" and image.size == expected.shape[1::-1], kind
        assert np.abs(np.asarray(image).astype(float) - expected).max() <= tolerance, kind
        assert name == "pictures" or source.captions(number) == (f"it is {kind}",)
        assert ToChannels(1)(source.image(number)).mode == "L"


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_picture_that_does_not_decode_is_refused_by_name(name: str, tmp_path: Path) -> None:
    pairs = dict(plain("train"))
    pairs["p2.png"] = (pairs["p2.png"][0][:60], ("cut short",))
    pairs["p3.png"] = (b"", ("empty",))
    pairs["p4.png"] = (b"<html>404</html>", ("a page",))
    source = PAIRS[name](**LAYOUTS[name](tmp_path, {"train": pairs})).build("train")
    for number in (2, 3, 4):
        with pytest.raises(
            UserError, match=rf"(p{number}|row {number}).*: does not decode as an image \(.*\)$"
        ):
            source.image(number)
    assert source.image(5).size == (8, 6)
