"""Every kind of image processor that is read, pixel by pixel: pictures of many shapes and modes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from transformers import AutoImageProcessor, ViTConfig

from transmamba.core.preprocessing import Preprocessing
from transmamba.ecosystems.processor import hugging_face_preprocessing, image_processor
from transmamba.errors import UserError

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViT", dict(size={"height": 16, "width": 16})),
    "ViT, int": ("ViT", dict(size=16)),
    "ViT, oblong": ("ViT", dict(size={"height": 12, "width": 20})),
    "ViT, box": ("ViT", dict(size=16, resample=4)),
    "ViT, hamming": ("ViT", dict(size=16, resample=5)),
    "ViT, lanczos": ("ViT", dict(size=16, resample=1)),
    "ViT, nearest": ("ViT", dict(size=16, resample=0)),
    "ViT, raw": ("ViT", dict(size=16, do_rescale=False, do_normalize=False)),
    "ViT, -1 to 1": (
        "ViT",
        dict(size=16, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
    ),
    "DeiT": ("DeiT", dict(size={"height": 20, "width": 20}, crop_size={"height": 16, "width": 16})),
    "DeiT, odd margin": ("DeiT", dict(size=21, crop_size=16)),
    "DeiT, short side": ("DeiT", dict(size={"shortest_edge": 20}, crop_size=16)),
    "DeiT, squashed oblong": (
        "DeiT",
        dict(size={"height": 12, "width": 24}, crop_size={"height": 10, "width": 20}),
    ),
    "Bit": ("Bit", dict(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})),
    "Bit, odd": ("Bit", dict(size={"shortest_edge": 19}, crop_size=16)),
    "CLIP": ("CLIP", dict(size=16, crop_size=16)),
    "CLIP, wide": ("CLIP", dict(size={"shortest_edge": 17}, crop_size=16)),
    "Siglip": ("Siglip", dict(size={"height": 16, "width": 16}, do_convert_rgb=True)),
}
SHAPES = [(16, 16), (33, 20), (20, 33), (17, 61), (40, 41), (8, 9), (23, 16), (101, 30)]


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Noise, of which every filter makes something else."""
    generator = np.random.default_rng(height * 1000 + width)
    noise = generator.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode) if mode != "RGB" else Image.fromarray(noise[..., :3])


def read(folder: Path, kind: str, options: dict[str, Any]) -> tuple[Preprocessing, Any, Any]:
    """Ours, and theirs by PIL and by torchvision, from one file."""
    getattr(transformers, f"{kind}ImageProcessor")(**options).save_pretrained(folder)
    size = options.get("crop_size", options["size"])
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    ours = hugging_face_preprocessing(ViTConfig(image_size=[height, width]), str(folder))
    assert ours.input_size == (3, height, width)
    return ours, *(
        AutoImageProcessor.from_pretrained(folder, backend=name) for name in ("pil", "torchvision")
    )


def levels(preprocessing: Preprocessing) -> torch.Tensor:
    """(3, 1, 1): one of 255 steps, in what the processor makes."""
    return 1 / (255 * torch.tensor(preprocessing.std))[:, None, None]


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_those_of_the_library_s_own_processor(case: str, tmp_path: Path) -> None:
    ours, pil, torchvision = read(tmp_path, *CASES[case])
    step = levels(ours)
    for height, width in SHAPES:
        image = picture(height, width)
        made = ours.eval_transform()(image)
        wanted = torch.as_tensor(pil(image, return_tensors="pt")["pixel_values"][0]).float()
        assert made.shape == wanted.shape
        assert ((made - wanted).abs() < 0.01 * step).all(), (height, width)
        if ours.interpolation in ("bilinear", "bicubic"):  # torchvision rounds its own way, and lacks others
            wanted = torchvision(image, return_tensors="pt")["pixel_values"][0].float()
            off = (made - wanted).abs() / step  # whose bicubic clips noise in other places
            assert off.max() < 1.01 if ours.interpolation == "bilinear" else off.mean() < 0.6, (height, width)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("kind", ["CLIP", "Bit", "Siglip"])
def test_every_mode_is_converted_alike(kind: str, mode: str, tmp_path: Path) -> None:
    if mode.endswith("A") and Version(transformers.__version__) < Version("5.21"):
        pytest.skip(
            "transformers before 5.21 drops what is transparent; we put it on white, as newer ones do"
        )
    ours, pil, _ = read(tmp_path, *CASES[kind])
    for height, width in SHAPES[:4]:
        image = picture(height, width, mode)
        wanted = torch.as_tensor(pil(image, return_tensors="pt")["pixel_values"][0]).float()
        assert ((ours.eval_transform()(image) - wanted).abs() < 0.01 * levels(ours)).all()


def test_a_crop_that_is_larger_lies_on_black(tmp_path: Path) -> None:
    options = dict(size={"shortest_edge": 13}, crop_size=16)
    ours, _, torchvision = read(tmp_path, "Bit", options)
    for height, width in SHAPES:
        image = picture(height, width)
        wanted = torchvision(image, return_tensors="pt")["pixel_values"][0].float()
        off = (ours.eval_transform()(image) - wanted).abs() / levels(ours)
        assert off.mean() < 0.6, (height, width)


def test_a_nested_file_gives_the_same_pixels(tmp_path: Path) -> None:
    ours, _, _ = read(tmp_path, *CASES["Siglip"])
    file = tmp_path / "preprocessor_config.json"
    nested = {"image_processor": json.loads(file.read_text()), "processor_class": "SiglipProcessor"}
    file.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert hugging_face_preprocessing(ViTConfig(image_size=16), str(tmp_path)) == ours


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (dict(size={"shortest_edge": 16}), "without do_center_crop"),
        (dict(size={"longest_edge": 16}), "longest_edge"),
        (dict(size={"shortest_edge": 16, "longest_edge": 32}), "longest_edge"),
        (dict(size={"max_height": 16, "max_width": 16}), "max_height"),
        (dict(size=0), "size 0"),
        (dict(size=True), "size True"),
        (dict(size=24, crop_size={"shortest_edge": 16}, do_center_crop=True), "crop_size"),
        (dict(size={"shortest_edge": 24}, crop_size=[16, 12], do_center_crop=True), "oblong"),
        (dict(size=19, crop_size=16, do_center_crop=True), "margin"),
        (dict(size=[32, 20], crop_size=[16, 16], do_center_crop=True), "both sides"),
        (dict(size=24), "pictures of 24 x 24 pixels, but the model takes 16 x 16"),
        (dict(size=16, image_processor_type="ViTPoseImageProcessor"), "ViTPoseImageProcessor"),
        (dict(size=16, image_processor_type="Siglip2ImageProcessor"), "Siglip2ImageProcessor"),
        (dict(size=16, ensure_multiple_of=14), "ensure_multiple_of"),
        (dict(size=16, auto_map={"AutoImageProcessor": "own.Processor"}), "auto_map"),
        (dict(size=16, resample="cubic"), "resample 'cubic'"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused_by_name(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=said) as caught:
        hugging_face_preprocessing(ViTConfig(image_size=16), str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


SAVED = [
    ("squash", 1.0, (16, 16)),
    ("squash", 0.8, (16, 16)),
    ("squash", 0.8, (16, 24)),
    ("center", 0.8, (16, 16)),
    ("center_down", 0.8, (16, 16)),
    ("border", 1.0, (16, 16)),
    ("border", 0.8, (16, 16)),
]


@pytest.mark.parametrize(("mode", "share", "size"), SAVED)
def test_a_saved_processor_makes_the_pixels_that_the_model_was_trained_on(
    mode: str, share: float, size: tuple[int, int], tmp_path: Path
) -> None:
    looks = Preprocessing((3, *size), (0.25, 0.5, 0.75), (0.5,) * 3, "bilinear", share, mode)
    image_processor(looks).save_pretrained(tmp_path)
    assert hugging_face_preprocessing(ViTConfig(image_size=list(size)), str(tmp_path)) == looks
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="torchvision")
    for height, width in [(40, 40), (40, 62), (61, 40), (80, 20)]:
        up = np.add.outer(np.arange(height), np.arange(width))[..., None] + np.array([0, 20, 60])
        image = Image.fromarray(up.astype(np.uint8))
        made = looks.eval_transform()(image)
        wanted = theirs(image, return_tensors="pt")["pixel_values"][0].float()
        off = (made - wanted).abs() / levels(looks)
        if mode == "center":  # a pixel beside, where the margin is 3, 7, 11 ...
            assert off.max() < 8
        elif mode == "border":  # they pad before they resize: the same but at the edge of the picture
            assert (off > 3).float().mean() < 0.2
        else:
            assert off.max() < 1.01


def test_what_no_processor_does_is_refused_when_it_is_saved() -> None:
    for mode in ("center", "border"):
        with pytest.raises(UserError, match=f"crop_mode {mode} of 16 x 24 pixels"):
            image_processor(Preprocessing((3, 16, 24), (0.5,) * 3, (0.5,) * 3, crop_mode=mode))


@pytest.mark.parametrize(("mode", "share", "size"), SAVED)
def test_timm_makes_the_same_of_what_is_written_for_it(
    mode: str, share: float, size: tuple[int, int]
) -> None:
    """`center_down` it takes for `center`."""
    from timm.data import create_transform

    looks = Preprocessing((3, *size), (0.25, 0.5, 0.75), (0.5,) * 3, "lanczos", share, mode)
    assert Preprocessing.from_pretrained_cfg(looks.to_pretrained_cfg()) == looks
    theirs = create_transform(**looks.to_pretrained_cfg())
    for height, width in [(40, 40), (40, 61), (60, 40)]:
        image = picture(height, width)
        assert torch.equal(looks.eval_transform()(image), theirs(image)) or mode == "center_down"
