"""What captions say is what pictures show: an independent reader of pixels checks the words."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from transmamba.data.scenes import Ground, Object, Scene, Scenes
from transmamba.data.scenes.draw import SHAPES, render
from transmamba.data.scenes.programs import COLOURS, LARGER, PLAIN_GROUNDS, STYLES, TEXTURES

SIDE = 256
SPECK = 6  # pixels: the tip of a crescent may part from the rest
COUNTS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
GROUNDS = {"white": (255, 255, 255), "grey": (128, 128, 128), "black": (0, 0, 0)}
NOUN = rf"({'|'.join(COLOURS)}) ([a-z]+?)"

Region = tuple[str, float, float, int]  # colour, x, y, pixels


def regions(picture: npt.NDArray[np.uint8], ground: str) -> list[Region]:
    """Connected regions that are not ground: flood fill over 8 neighbours, pixel by pixel."""
    off = np.abs(picture.astype(int) - GROUNDS[ground]).sum(-1) > 24
    found = []
    for start in zip(*np.nonzero(off), strict=True):
        if not off[start]:
            continue
        off[start], stack, pixels = False, [start], []
        while stack:
            row, column = stack.pop()
            pixels.append((row, column))
            for r, c in itertools.product((row - 1, row, row + 1), (column - 1, column, column + 1)):
                if 0 <= r < len(off) and 0 <= c < len(off) and off[r, c]:
                    off[r, c] = False
                    stack.append((r, c))
        rows, columns = np.array(pixels).T
        if len(pixels) < SPECK:
            continue
        found.append((colour_of(picture[rows, columns]), columns.mean(), rows.mean(), len(pixels)))
    return found


def colour_of(pixels: npt.NDArray[np.uint8]) -> str:
    """The name of the colour that most pixels show exactly (the pictures are flat)."""
    values, times = np.unique(pixels, axis=0, return_counts=True)
    return {rgb: name for name, rgb in COLOURS.items()}.get(tuple(values[times.argmax()].tolist()), "none")


def listed(caption: str) -> dict[str, int]:
    """How many objects of each colour the caption lists."""
    counts = dict.fromkeys(COLOURS, 0)
    for number, colour, _ in re.findall(rf"\b({'|'.join(COUNTS)}) {NOUN}\b", caption):
        counts[colour] += COUNTS[number]
    return counts


def is_true(relation: str, one: Region, two: Region) -> bool:
    return {
        "left of": one[1] < two[1],
        "right of": one[1] > two[1],
        "above": one[2] < two[2],
        "below": one[2] > two[2],
        "larger than": one[3] > two[3],
        "smaller than": one[3] < two[3],
    }[relation]


def plain_scenes(split: str, count: int) -> list[tuple[int, Scene]]:
    scenes = ((i, Scenes(split=split).program(i)) for i in range(10_000))
    flat = ((i, replace(s, style="flat")) for i, s in scenes if s.ground.name in PLAIN_GROUNDS)
    return list(itertools.islice(flat, count))


@pytest.mark.parametrize("split", ["train", "swapped_relations", "unseen_objects"])
def test_captions_are_true_of_the_pixels(split: str) -> None:
    checked: set[str] = set()
    for index, scene in plain_scenes(split, 40):
        caption = Scenes(split=split).caption(index)
        seen = regions(render(scene, SIDE), scene.ground.name)
        counts = dict.fromkeys(COLOURS, 0)
        for colour, *_ in seen:
            counts[colour] += 1
        assert counts == listed(caption), caption
        assert f"a {scene.ground.name} background" in caption
        said = re.search(rf"the {NOUN} is ([a-z]+ (?:of|than)|above|below) the {NOUN}\b", caption)
        if said is None:
            continue
        one, _, relation, two, _ = said.groups()
        if counts[one] == counts[two] == 1:
            regions_of = [next(r for r in seen if r[0] == colour) for colour in (one, two)]
            assert is_true(relation, *regions_of), caption
            checked.add(relation)
    assert len(checked) >= 4


def test_a_single_object_is_where_its_caption_says() -> None:
    alone = [(i, s) for i, s in plain_scenes("train", 400) if len(s.objects) == 1]
    assert len(alone) > 20
    for index, scene in alone:
        ((_, x, y, _),) = regions(render(scene, SIDE), scene.ground.name)
        row = ("upper", "middle", "lower")[int(3 * y / SIDE)]
        column = ("left", "centre", "right")[int(3 * x / SIDE)]
        place = f"{row} {column}" if (row, column) != ("middle", "centre") else "very middle"
        assert f"in the {place}" in Scenes().caption(index)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("ground", [*PLAIN_GROUNDS, *TEXTURES])
def test_a_shape_shows_its_colour_within_its_disc(kind: str, ground: str) -> None:
    inside = {"ring": (0.76, 0.0), "crescent": (-0.6, 0.0)}.get(kind, (0.0, 0.05))
    bare = Scene((), Ground(ground, 5))
    for colour, rgb in COLOURS.items():
        scene = replace(bare, objects=(Object(kind, colour, 0.4, 0.6, 0.35),))
        picture = render(scene, SIDE)
        row, column = (int((at + 0.175 * d) * SIDE) for at, d in ((0.6, inside[1]), (0.4, inside[0])))
        assert picture[row, column].tolist() == list(rgb)
        changed = np.argwhere((picture != render(bare, SIDE)).any(-1)) + 0.5
        reach = np.hypot(changed[:, 0] - 0.6 * SIDE, changed[:, 1] - 0.4 * SIDE).max()
        assert 0.9 * 0.175 * SIDE < reach < 0.175 * SIDE + 1.5


def test_what_is_called_larger_covers_more_whatever_its_kind() -> None:
    covered = []
    for kind in SHAPES:
        picture = render(Scene((Object(kind, "red", 0.5, 0.5, 0.9),), Ground("black")), SIDE)
        covered.append((picture[..., 0] > 100).sum())
    assert max(covered) < LARGER**2 * min(covered)


@pytest.mark.parametrize("side", [64, 224])
def test_another_resolution_is_the_same_picture(side: int) -> None:
    for index in range(60):
        scenes = Scenes(split="unseen_style" if index % 3 == 0 else "train")
        small = scenes.picture(index, side).astype(float)
        for times in (2, 3):
            large = scenes.picture(index, side * times).astype(float)
            averaged = large.reshape(side, times, side, times, 3).mean((1, 3))
            error = np.abs(small - averaged)
            assert error.mean() < 1.0 and (error.max(-1) > 48).mean() < 0.004


def test_size_from_pixels_is_the_size_of_the_program() -> None:
    for size in (1 / 16, 0.2, 0.42):
        scene = Scene((Object("circle", "red", 0.5, 0.5, size),), Ground("white"))
        for side in (64, 320, 896):
            share = (255.0 - render(scene, side)[..., 1]).sum() / (255 - COLOURS["red"][1]) / side**2
            assert share == pytest.approx(math.pi * size**2 / 4, rel=0.03)


@pytest.mark.parametrize("style", [*STYLES, "hatched"])
def test_styles_differ_in_pixels_alone(style: str) -> None:
    scene = Scene((Object("star", "blue", 0.5, 0.5, 0.4),), Ground("white"))
    same = (render(replace(scene, style=style), 64) == render(scene, 64)).all()
    assert same == (style == "flat")


def test_textures_vary_by_seed_and_stay_within_range() -> None:
    for name in TEXTURES:
        one, two = (render(Scene((), Ground(name, seed)), 64) for seed in (1, 2))
        assert (one != two).mean() > 0.5 and one.std() > 3
