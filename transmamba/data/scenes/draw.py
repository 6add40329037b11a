"""From a program to pixels: signed distances give each pixel's coverage, at any resolution.

A shape is a function of (u, v), a position in units of the radius of its disc, which is negative inside it
and about the distance to its edge near it (Quilez, "2D distance functions"). Only the pixels of an object's
box are computed. Textures are sums of smooth lattice noise, made by two small matrix products. A canvas holds
its colours in planes, (3, side, side): numpy is several times faster over long rows than over three channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ..hashing import hash64
from .programs import COLOURS, PHOTOGRAPH, Ground, Object, Scene, is_tile
from .stock import Stock
from .tiles import paint_tile, stretched

Field = npt.NDArray[np.floating[Any]]  # all are float32; that is more than numpy's types can follow
Shape = Callable[[Field, Field], Field]

SMALLEST_SIDE, LARGEST_SIDE = 16, 4096

_PLAIN = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
# name -> the colours between which it varies, and for each octave the cells a side (down, across)
_TEXTURES = {
    "grass": ((35, 75, 30), (80, 125, 55), ((4, 4), (8, 16))),
    "sand": ((205, 185, 140), (235, 220, 180), ((3, 3), (16, 16))),
    "sky": ((120, 165, 215), (245, 248, 252), ((2, 2), (5, 4), (9, 7))),
    "wood": ((170, 125, 85), (215, 175, 130), ((3, 1), (14, 2))),
    "stone": ((75, 75, 80), (165, 165, 160), ((4, 4), (9, 9), (16, 16))),
    "water": ((15, 45, 75), (75, 120, 145), ((9, 2), (15, 5))),
}


def render(scene: Scene, side: int, stock: Stock | None = None) -> npt.NDArray[np.uint8]:
    """The picture, (side, side, 3) uint8 RGB. The same program at another side is the same picture.

    stock: where the program's tiles and photographs come from; programs without them need none
    Raises UserError for a side that is not between 16 and 4096 pixels.
    """
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise UserError(f"side {side}: write a number of pixels from {SMALLEST_SIDE} to {LARGEST_SIDE}")
    canvas = paint_ground(scene.ground, side, stock)
    for thing in scene.objects:
        if is_tile(thing.kind):
            assert stock is not None
            paint_tile(canvas, thing, stock.tile(thing), _colour(thing.colour) if thing.colour else None)
        else:
            paint(canvas, thing, scene.style)
    canvas += 0.5  # rounds what assignment cuts; all values are within 0 and 255
    picture = np.empty((side, side, 3), dtype=np.uint8)
    for channel, plane in enumerate(canvas):
        picture[..., channel] = plane
    return picture


def paint(canvas: Field, thing: Object, style: str) -> None:
    """Draws one shape on (3, side, side) float32 of 0 to 255, in place."""
    side = canvas.shape[-1]
    radius = thing.size / 2
    left, right = _span(thing.x, radius, side)
    top, bottom = _span(thing.y, radius, side)
    if right <= left or bottom <= top:
        return
    pixel = 1 / (radius * side)  # a pixel's width in units of the radius
    across = (_numbers(side)[left:right] - thing.x * side) * pixel
    down = ((_numbers(side)[top:bottom] - thing.y * side) * pixel)[:, None]
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    u, v = across * cos + down * sin, down * cos - across * sin
    distance = SHAPES[thing.kind](u, v)
    cover = _coverage(distance, pixel)
    box = canvas[:, top:bottom, left:right]
    box += cover * (_ink(thing.colour, style, u, v, distance, pixel) - box)


def _span(at: float, radius: float, side: int) -> tuple[int, int]:
    """The pixels that an object may touch along one axis, from and to."""
    return max(0, int((at - radius) * side) - 1), min(side, int((at + radius) * side) + 2)


def _coverage(distance: Field, pixel: float) -> Field:
    """How much of each pixel lies inside, 0 to 1."""
    inside = 0.5 - distance * (1 / pixel)
    return np.minimum(np.maximum(inside, 0, out=inside), 1, out=inside)


def _ink(colour: str, style: str, u: Field, v: Field, distance: Field, pixel: float) -> Field:
    """The object's colour at each pixel, (3, h, w) or (3, 1, 1)."""
    ink = _colour(colour)
    if style == "outlined":  # a dark rim, 0.16 wide
        rim = 1 - _coverage(distance + 0.16, pixel)
        return ink * (1 - 0.6 * rim)
    if style == "shaded":  # darker towards its lower right
        return ink * np.minimum(0.85 - 0.18 * (u + v), 1)
    if style == "hatched":  # slanted stripes, three a radius, of the colour and of one nearer to white
        light = 0.5 + 0.5 * np.sin((3 * math.pi) * (u + v))
        return ink + (0.55 * light) * (255 - ink)
    return ink


@cache
def _colour(name: str) -> Field:
    """(3, 1, 1)."""
    return _planes(COLOURS[name])


def _planes(colour: tuple[int, int, int]) -> Field:
    return np.array(colour, dtype=np.float32)[:, None, None]


@cache
def _numbers(side: int) -> Field:
    """The centres of pixels, in pixels."""
    return np.arange(side, dtype=np.float32) + 0.5


# --- grounds ---


def paint_ground(ground: Ground, side: int, stock: Stock | None = None) -> Field:
    """(3, side, side) float32 of 0 to 255."""
    if ground.name == PHOTOGRAPH:
        assert stock is not None
        return stretched(stock.photograph(ground.seed), side)
    if ground.name in _PLAIN:
        return np.full((3, side, side), _planes(_PLAIN[ground.name]), dtype=np.float32)
    low, high, octaves = _TEXTURES[ground.name]
    canvas = texture(ground.seed, octaves, side) * (_planes(high) - _planes(low))
    canvas += _planes(low)
    return canvas


def texture(seed: int, octaves: tuple[tuple[int, int], ...], side: int) -> Field:
    """Smooth noise of mean one half within 0 and 1, (side, side): an octave weighs 0.7 of the one before."""
    total = np.zeros((side, side), dtype=np.float32)
    weights = np.array([0.7**number for number in range(len(octaves))], dtype=np.float32)
    weights /= weights.sum()
    for number, (down, across) in enumerate(octaves):
        knots = hash64(seed, number, np.arange((down + 1) * (across + 1))) >> np.uint64(40)
        lattice = knots.astype(np.float32).reshape(down + 1, across + 1) * np.float32(2**-24)
        total += _blend(side, down) @ (lattice * weights[number]) @ _blend(side, across).T
    return total


@cache
def _blend(side: int, cells: int) -> Field:
    """(side, cells + 1): how much each knot weighs in each pixel, along one axis, smoothly."""
    at = _numbers(side) * np.float32(cells / side)
    knot = np.floor(at).astype(np.int64)
    share = at - knot
    share = share * share * (3 - 2 * share)
    weights = np.zeros((side, cells + 1), dtype=np.float32)
    weights[np.arange(side), knot] = 1 - share
    weights[np.arange(side), knot + 1] = share
    return weights


# --- shapes ---


def _points(count: int, inner: float, turn: float) -> Shape:
    """A star of `count` points at radius 1, dented to radius `inner`; cos(pi / count) makes a polygon.

    turn: direction of one of the points, radians.
    """
    fold = 2 * math.pi / count
    dent = (inner * math.cos(math.pi / count), inner * math.sin(math.pi / count))
    length = math.hypot(1 - dent[0], dent[1])
    across, along = dent[1] / length, (1 - dent[0]) / length

    def distance(u: Field, v: Field) -> Field:
        angle = np.arctan2(v, u) - turn
        angle -= fold * np.rint(angle / fold)
        radius = np.sqrt(u * u + v * v)
        edge: Field = (radius * np.cos(angle) - 1) * across + radius * np.abs(np.sin(angle)) * along
        return edge

    return distance


def _box(u: Field, v: Field, wide: float, high: float) -> Field:
    return np.maximum(np.abs(u) - wide, np.abs(v) - high)


def _disc(u: Field, v: Field, radius: float = 1.0) -> Field:
    return np.sqrt(u * u + v * v) - radius


def _cross(u: Field, v: Field) -> Field:
    return np.minimum(_box(u, v, 0.94, 0.3), _box(u, v, 0.3, 0.94))


def _diamond(u: Field, v: Field) -> Field:
    slope = 1 / math.hypot(1, 0.55)
    return (np.abs(u) + np.abs(v) * 0.55 - 0.55) * slope


def _oval(u: Field, v: Field) -> Field:
    """An ellipse of half axes 1 and 0.5, by its implicit form over its gradient."""
    radius = np.sqrt(u * u + 4 * v * v)
    return radius * (radius - 1) / np.maximum(np.sqrt(u * u + 16 * v * v), np.float32(1e-3))


def _semicircle(u: Field, v: Field) -> Field:
    return np.maximum(_disc(u, v - 0.4, 0.9), v - 0.4)


def _arrow(u: Field, v: Field) -> Field:
    """Upwards: a head over a shaft."""
    head = np.maximum((np.abs(u) * 1.3 - v - 1) * 0.61, v + 0.05)
    return np.minimum(head, np.maximum(np.abs(u) - 0.24, np.abs(v - 0.4) - 0.5))


def _heart(u: Field, v: Field) -> Field:
    """Two discs over a wedge."""
    lobes = _disc(np.abs(u) - 0.45, v + 0.3, 0.45)
    side = (np.abs(u) + (v - 0.92) * 0.86) * 0.758
    return np.minimum(lobes, np.maximum(side, -0.12 - v))


def _crescent(u: Field, v: Field) -> Field:
    return np.maximum(_disc(u, v), -_disc(u - 0.5, v, 0.8))


def _flower(u: Field, v: Field) -> Field:
    """Five petals."""
    petals = 0.76 + 0.22 * np.cos(5 * np.arctan2(v, u))
    return (np.sqrt(u * u + v * v) - petals) * 0.7


SHAPES: dict[str, Shape] = {
    "circle": _disc,
    "square": _points(4, math.cos(math.pi / 4), math.pi / 4),
    "triangle": _points(3, 0.5, -math.pi / 2),
    "star": _points(5, 0.42, -math.pi / 2),
    "cross": _cross,
    "ring": lambda u, v: np.abs(_disc(u, v, 0.76)) - 0.23,
    "diamond": _diamond,
    "hexagon": _points(6, math.cos(math.pi / 6), 0.0),
    "rectangle": lambda u, v: _box(u, v, 0.9, 0.4),
    "oval": _oval,
    "semicircle": _semicircle,
    "arrow": _arrow,
    "heart": _heart,
    "crescent": _crescent,
    "flower": _flower,
}
