"""Tiles and photographs as pixels, beside Pillow's own resampling and compositing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from stocks import stock

from transmamba.data.scenes import Ground, Object, Scene, Scenes
from transmamba.data.scenes.draw import render
from transmamba.data.scenes.programs import COLOURS, SMALLEST
from transmamba.data.scenes.tiles import paint_tile

SIDE = 64


def canvas(value: float = 0.0, side: int = SIDE) -> npt.NDArray[np.float32]:
    return np.full((3, side, side), value, dtype=np.float32)


def over(pixels: int, left: int = 8, top: int = 12, side: int = SIDE) -> Object:
    """A tile over exactly so many whole pixels."""
    middle = [(start + pixels / 2) / side for start in (left, top)]
    return Object("tile", "", *middle, size=2**0.5 * pixels / side)


def noise(channels: int, side: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(side).integers(0, 256, (channels, side, side), dtype=np.uint8)


@pytest.mark.parametrize("source", [7, 32, 40, 71])
@pytest.mark.parametrize("pixels", [5, 16, 40])
def test_an_opaque_tile_is_pillows(source: int, pixels: int) -> None:
    tile, board = noise(3, source), canvas(99)
    paint_tile(board, over(pixels), tile, None)
    picture = Image.fromarray(tile.transpose(1, 2, 0)).resize((pixels, pixels), Image.Resampling.BILINEAR)
    there = board[:, 12 : 12 + pixels, 8 : 8 + pixels].transpose(1, 2, 0)
    assert np.abs(there - np.asarray(picture)).max() < 1.6  # Pillow rounds after each axis
    board[:, 12 : 12 + pixels, 8 : 8 + pixels] = 99
    assert np.allclose(board, 99, atol=1e-3)


@pytest.mark.parametrize("pixels", [11, 36])
def test_a_transparent_tile_is_pillows(pixels: int) -> None:
    colours = noise(4, 24)
    whole = Image.fromarray(colours.transpose(1, 2, 0), "RGBA")
    board = canvas(180)
    paint_tile(board, over(pixels), np.asarray(whole.convert("RGBa")).transpose(2, 0, 1), None)
    # Pillow resamples RGBA multiplied by alpha, as it should
    small = whole.resize((pixels, pixels), Image.Resampling.BILINEAR)
    expected = Image.new("RGBA", small.size, (180, 180, 180, 255))
    expected.alpha_composite(small)
    there = board[:, 12 : 12 + pixels, 8 : 8 + pixels].transpose(1, 2, 0)
    assert np.abs(there - np.asarray(expected)[..., :3]).max() < 4


def test_ink_takes_the_colour_as_far_as_it_covers() -> None:
    tile = np.zeros((1, 16, 16), dtype=np.uint8)
    tile[0, :8], tile[0, 8:12] = 255, 51
    board = canvas(100)
    ink = np.array([200.0, 0.0, 100.0], dtype=np.float32)[:, None, None]
    paint_tile(board, over(16), tile, ink)
    assert np.allclose(board[:, 12:19, 8:24], ink) and np.allclose(board[:, 24:28, 8:24], 100)
    assert np.allclose(board[:, 21, 10], [120, 80, 100])


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.77])
@pytest.mark.parametrize("size", [0.02, SMALLEST, 0.31])
def test_a_tile_covers_its_area_wherever_it_lies(shift: float, size: float) -> None:
    board = canvas()
    thing = Object("tile", "", 0.5 + shift / SIDE, 0.4 - shift / SIDE, size)
    paint_tile(board, thing, np.full((3, 5, 5), 255, dtype=np.uint8), None)
    assert board[0].sum() / 255 == pytest.approx(size**2 / 2 * SIDE**2, rel=1e-4)
    at = np.arange(SIDE) + 0.5
    assert (board[0].sum(0) @ at) / board[0].sum() == pytest.approx(thing.x * SIDE, abs=0.04)


def test_a_tile_beyond_the_edge_is_cut_there() -> None:
    board, wide = canvas(), canvas(side=3 * SIDE)
    tile = noise(3, 12)
    paint_tile(board, Object("tile", "", 0.5, 0.55, 1.8), tile, None)
    paint_tile(wide, Object("tile", "", 1.5 / 3, 1.55 / 3, 0.6), tile, None)
    assert np.allclose(board, wide[:, SIDE : 2 * SIDE, SIDE : 2 * SIDE], atol=1e-2)


@pytest.mark.parametrize("split", ["train", "unseen_style"])
def test_another_resolution_is_the_same_picture(split: str) -> None:
    scenes = Scenes(split=split, stock=stock(filling=0.2, photographs=()))
    for index in range(40):
        small, large = (scenes.picture(index, side).astype(float) for side in (128, 384))
        averaged = large.reshape(128, 3, 128, 3, 3).mean((1, 3))
        assert np.abs(small - averaged).mean() < 1.0


def test_a_digit_is_drawn_in_its_colour_and_every_number_is_one_of_its_kind() -> None:
    goods = stock()
    assert goods.digits is not None
    for number in range(7):
        thing = Object("handwritten 4", "purple", 0.5, 0.5, 0.9, number=number)
        tile = goods.tile(thing)
        pictures = goods.digits.array()
        assert pictures is not None
        assert np.array_equal(tile[0], pictures[12 + number % 3, ..., 0])
        shown = render(Scene((thing,), Ground("white")), 64, goods).astype(float)
        ink = (255 - shown) / (255 - np.array(COLOURS["purple"], dtype=float))
        assert np.abs(ink - ink.mean(-1, keepdims=True)).max() < 0.02  # one colour, more or less of it


def test_photographs_fill_the_ground_and_vary_by_seed() -> None:
    goods = stock()
    parts = {goods.photograph(seed).tobytes() for seed in range(36)}
    assert len(parts) == 18 and all(goods.photograph(seed).shape == (12, 12, 3) for seed in range(36))
    shown = render(Scene((), Ground("photograph", 5)), 24, goods)
    expected = Image.fromarray(goods.photographs[1][2:14]).resize((24, 24), Image.Resampling.BILINEAR)
    assert np.array_equal(shown, np.asarray(expected))


def test_a_tile_is_a_square_of_any_picture() -> None:
    from transmamba.data.images.memory import DecodedSource

    wide = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    grey = wide[..., :1]
    source = DecodedSource([wide, grey], np.array([0, 1]), ("ant", "bee"))
    goods = stock(pictures=source)
    colours = goods.tile(Object("photo of an ant", "", 0.5, 0.5, 0.2))
    assert np.array_equal(colours, wide[:, 2:8].transpose(2, 0, 1))
    assert (goods.tile(Object("photo of a bee", "", 0.5, 0.5, 0.2)) == grey[:, 2:8, 0]).all()
