"""What is drawn for one picture, and torchvision's and timm's own transforms beside ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, random_erasing
from torchvision.transforms import v2

from transmamba.data import ArraySource, Augment, Preprocessing
from transmamba.data.hashing import Draws
from transmamba.data.images import rand_augment
from transmamba.data.images.augment import Moves
from transmamba.data.images.batches import TrainImages
from transmamba.data.images.pictures import PictureTransform, crop_box
from transmamba.data.images.rand_augment import OPERATIONS, RandAugment, apply, argument
from transmamba.errors import UserError

TWELVE = Preprocessing((3, 12, 12), (0.0,) * 3, (1.0,) * 3)


def _picture(channels: int = 3, height: int = 40, width: int = 50) -> Image.Image:
    # Smooth, as pictures are: an ulp in a rotation's matrix then moves a value by one level at most.
    y, x = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(x / (3 + c)) + 60 * np.cos(y / (4 + c)) for c in range(channels)]
    pixels = np.stack(waves, axis=-1).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _batch(augment: Augment, count: int, picture: Image.Image, preprocessing: Preprocessing = TWELVE):
    moves = Moves.draw(augment, 0, np.zeros(count, dtype=np.int64), np.arange(count))
    return PictureTransform(preprocessing, augment).batch([picture] * count, moves)


def test_draws_are_splitmix64_and_evenly_spread() -> None:
    draws = Draws(0)  # the first values that Steele et al.'s generator gives
    assert [draws.bits() for _ in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    numbers = np.array([draws.uniform(2.0, 4.0) for _ in range(20_000)])
    assert numbers.min() >= 2.0 and numbers.max() < 4.0
    assert abs(numbers.mean() - 3.0) < 0.02 and abs(numbers.std() - 2 / math.sqrt(12)) < 0.01
    assert np.bincount([draws.below(7) for _ in range(14_000)]).tolist() == pytest.approx([2000] * 7, rel=0.1)
    normal = np.array([draws.normal(5.0, 2.0) for _ in range(20_000)])
    assert abs(normal.mean() - 5.0) < 0.05 and abs(normal.std() - 2.0) < 0.03
    assert abs((np.abs(normal - 5.0) < 2.0).mean() - 0.6827) < 0.01


def test_crops_of_random_size_are_spread_as_torchvisions() -> None:
    scale, draws = (0.2, 1.0), Draws(1)
    ours = np.array([crop_box(40, 50, scale, draws) for _ in range(4000)])
    torch.manual_seed(0)
    torchvisions = v2.RandomResizedCrop(8, scale=scale, ratio=[3 / 4, 4 / 3])
    params = [torchvisions.make_params([torch.zeros(3, 40, 50)]) for _ in range(4000)]
    theirs = np.array([[each[name] for name in ("top", "left", "height", "width")] for each in params])
    top, left, height, width = ours.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 40).all() and (left + width <= 50).all()
    assert np.abs(np.log(width / height)).max() < math.log(4 / 3) + 0.1
    assert ours.mean(axis=0) == pytest.approx(theirs.mean(axis=0), rel=0.05)
    assert ours.std(axis=0) == pytest.approx(theirs.std(axis=0), rel=0.05)


@pytest.mark.parametrize("height, width, box", [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10))])
def test_where_no_crop_fits_the_middle_is_taken(height: int, width: int, box: tuple[int, ...]) -> None:
    assert crop_box(height, width, (1.0, 1.0), Draws(0)) == box


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_is_torchvisions_of_the_same_box(channels: int, interpolation: str) -> None:
    size = (channels, 12, 16)
    plain = Preprocessing(size, (0.0,) * channels, (1.0,) * channels, interpolation=interpolation)
    augment = Augment(random_resized_crop_scale=(0.2, 0.9))
    images = _batch(augment, 6, _picture(channels), plain)
    seeds = Moves.draw(augment, 0, np.zeros(6, dtype=np.int64), np.arange(6)).seed
    mode = v2.InterpolationMode(interpolation)
    for image, seed in zip(images, seeds, strict=True):
        box = crop_box(40, 50, (0.2, 0.9), Draws(int(seed)))
        cut = v2.functional.resized_crop(_picture(channels), *box, [12, 16], interpolation=mode)
        assert torch.equal(image, v2.functional.to_image(cut) / 255)


def test_jitter_stays_within_its_strength_and_comes_in_every_order() -> None:
    gray = Image.new("RGB", (12, 12), (100, 100, 100))
    levels = _batch(Augment(color_jitter=0.4), 300, gray)[:, 0, 0, 0] * 255
    # Of a gray picture saturation changes nothing and contrast nothing but rounding.
    assert 59 <= levels.min() < 63 and 137 < levels.max() <= 141
    half = Image.fromarray(np.repeat([[[200, 30, 90]], [[10, 60, 20]]], 12, axis=1).astype(np.uint8))
    assert len(_batch(Augment(color_jitter=0.4), 50, half.resize((12, 12))).unique(dim=0)) == 50


def test_erasing_puts_normal_noise_into_as_large_a_rectangle_as_timms() -> None:
    white = Image.new("RGB", (32, 32), "white")
    plain = Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3)
    erased = _batch(Augment(erasing=0.5), 2000, white, plain) != 1.0
    assert 900 < erased.flatten(1).any(dim=1).sum() < 1100
    images = _batch(Augment(erasing=1.0), 2000, white, plain)
    ours, values = [], []
    for image in images:
        mask = (image != 1.0).all(dim=0)
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        ours.append(int(mask.sum()))
        values.append(image[:, mask].flatten())
    noise = torch.cat(values)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    theirs = []
    for _ in range(2000):
        blank = torch.ones(3, 32, 32)
        random_erasing.RandomErasing(1.0, mode="pixel", device="cpu")(blank)
        theirs.append(int((blank[0] != 1).sum()))
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.07)


@pytest.mark.parametrize(
    "string, expected",
    [
        ("rand", RandAugment()),
        ("rand-m9-mstd0.5-inc1", RandAugment(magnitude=9, std=0.5, increasing=True)),
        ("rand-m7-n3-p0.8-inc0", RandAugment(magnitude=7, count=3, probability=0.8)),
        ("rand-m12-mmax15-mstd101", RandAugment(magnitude=12, limit=15, std=math.inf)),
    ],
)
def test_strings_mean_what_timm_means_by_them(string: str, expected: RandAugment) -> None:
    assert RandAugment.parse(string) == expected
    theirs = auto_augment.rand_augment_transform(string, dict(img_mean=(1, 2, 3)))
    op = theirs.ops[0]
    assert (theirs.num_layers, op.prob, op.magnitude) == (
        expected.count,
        expected.probability,
        expected.magnitude,
    )
    assert (op.magnitude_std, op.magnitude_max or 10) == (expected.std, expected.limit)
    assert ("PosterizeIncreasing" in [op.name for op in theirs.ops]) == expected.increasing
    assert [op.name.removesuffix("Increasing") for op in theirs.ops] == list(OPERATIONS)


@pytest.mark.parametrize(
    "string", ["rand-q9", "random-m9", "rand-m9.5", "rand-m9-tweights", "rand--m9", "rand-m"]
)
def test_what_is_not_understood_is_said_so(string: str) -> None:
    with pytest.raises(UserError, match=f"rand_augment '{string}' is not understood"):
        Augment(rand_augment=string)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [0.0, 0.37, 0.9, 1.0, 1.4])
@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_timms(name: str, increasing: bool, level: float, channels: int) -> None:
    """Argument by argument, and pixel by pixel but for the last bit of a shear's tangent."""
    fill = [10, 120, 240][:channels]
    value = argument(name, level, increasing, Draws(4))
    also = f"{name}Increasing" if increasing and f"{name}Increasing" in auto_augment.NAME_TO_OP else name
    level_of = auto_augment.LEVEL_TO_ARG[also]
    if level_of is not None:
        either = [_timm_argument(level_of, level, sign) for sign in (0.25, 0.75)]
        if name == "Posterize":
            either = [max(0, bits) for bits in either]
        assert any(value == pytest.approx(one, abs=1e-12) for one in either)
    picture = _picture(channels)
    ours = apply(name, picture, value, fill, "bicubic")
    assert ours.size == picture.size and ours.mode == picture.mode
    if name == "Posterize" and not value:
        assert not np.asarray(ours).any()  # as it was in timm before Pillow 13
        return
    # torchvision says where the picture moves, timm where its pixels are fetched from.
    moved = -value if name.startswith("Translate") else value
    arguments = [] if level_of is None else [moved]
    outside = {"fillcolor": tuple(fill) if channels == 3 else fill[0], "resample": Image.Resampling.BICUBIC}
    theirs = auto_augment.NAME_TO_OP[also](picture, *arguments, **outside)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1


def _timm_argument(level_of, level: float, sign: float) -> float:
    original = auto_augment.random.random
    auto_augment.random.random = lambda: sign
    try:
        return level_of(level * 10, {"translate_pct": 0.45})[0]
    finally:
        auto_augment.random.random = original


def test_operations_are_chosen_evenly_and_applied_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(rand_augment, "apply", lambda name, image, *_: seen.append((name, _[0])) or image)
    draws = Draws(3)
    for _ in range(3000):
        RandAugment(magnitude=6, count=2, probability=0.5)(_picture(), draws, [0] * 3, "bicubic")
    names = [name for name, _ in seen]
    assert len(names) == pytest.approx(3000, rel=0.05)
    assert all(names.count(name) == pytest.approx(200, rel=0.3) for name in OPERATIONS)
    turns = np.array([value for name, value in seen if name == "Rotate"])
    assert set(np.abs(turns)) == {18.0} and 0.35 < (turns > 0).mean() < 0.65


@pytest.mark.parametrize("std, low, high", [(0.0, 6.0, 6.0), (1.0, 2.0, 10.0), (math.inf, 0.0, 6.0)])
def test_magnitudes_vary_as_mstd_says(std: float, low: float, high: float) -> None:
    draws = Draws(8)
    levels = np.array([RandAugment(magnitude=6, std=std)._level(draws) * 10 for _ in range(4000)])
    assert low - 1e-9 <= levels.min() and levels.max() <= high + 1e-9
    expected = {0.0: 0.0, 1.0: 1.0}.get(std, 6 / math.sqrt(12))
    assert levels.std() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("string", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1", "rand-m0", "rand-m9-mstd101-n4"])
def test_randaugment_survives_every_strength(string: str) -> None:
    images = _batch(Augment(rand_augment=string), 300, _picture().resize((12, 12)))
    assert images.isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"crop_padding": -1}, "crop_padding -1"),
        ({"random_resized_crop_scale": (0.5, 0.2)}, r"random_resized_crop_scale \[0.5, 0.2\]"),
        ({"rand_augment": "m9"}, "rand_augment 'm9': write a string such as"),
        ({"rand_augment": "rand-m9", "color_jitter": 0.4}, "no effect beside rand_augment"),
        ({"color_jitter": -0.4}, "color_jitter -0.4"),
        ({"erasing": 1.5}, "erasing 1.5"),
    ],
)
def test_augment_mistakes(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augment(**options)


def test_pictures_of_any_size_and_mode_are_cropped() -> None:
    class Mixed(ArraySource):
        def image(self, index: int) -> Image.Image:
            return _picture(1 + 2 * (index % 2), 9 + index, 30 - index).convert("RGBA" if index % 3 else "L")

        def array(self) -> None:  # type: ignore[override]
            return None

    source = Mixed(np.zeros((8, 1, 1, 1), dtype=np.uint8), np.zeros(8, dtype=np.int64), ("a",))
    augment = Augment(random_resized_crop_scale=(0.3, 1.0), crop_padding=1, hflip=True)
    dataset = TrainImages(source, np.arange(8), TWELVE, augment, 0)
    batch = dataset.batch(np.stack([np.zeros(8, dtype=np.int64), np.arange(8)], axis=1))
    assert batch.inputs["image"].shape == (8, 3, 12, 12)
