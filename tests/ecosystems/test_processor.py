"""A Hugging Face image processor gives the pixels that transformers gives, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, BitImageProcessor, ViTConfig, ViTImageProcessor

from transmamba.core.preprocessing import Preprocessing
from transmamba.ecosystems.processor import hugging_face_preprocessing, image_processor
from transmamba.errors import UserError

CONFIG = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def processor(**changes: Any) -> Any:
    return ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.2, 0.4, 0.6], **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1 / 127.5, "do_normalize": False},
        {"resample": 3},
        {"resample": 0},
    ],
    ids=str,
)
def test_pixels_are_those_of_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    processor(**changes).save_pretrained(tmp_path)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(PICTURE, return_tensors="pt")["pixel_values"][0]
    ours = hugging_face_preprocessing(CONFIG, str(tmp_path)).eval_transform()(PICTURE)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


def test_the_newer_file_nests_it_and_goes_before_the_older(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.9, 0.9, 0.9]}))
    nested = json.loads(processor(do_normalize=False).to_json_string())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    looks = hugging_face_preprocessing(CONFIG, str(tmp_path))
    assert looks.mean == (0.0,) * 3 and looks.std == (1.0,) * 3
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "ViTProcessor"}))
    assert hugging_face_preprocessing(CONFIG, str(tmp_path)).mean == (0.9,) * 3


def test_what_a_file_leaves_out_is_as_its_kind_has_it(tmp_path: Path) -> None:
    values = {"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**values, "crop_size": 8}))
    looks = hugging_face_preprocessing(CONFIG, str(tmp_path))
    assert (looks.crop_mode, looks.crop_pct, looks.interpolation) == ("center_down", 0.5, "bicubic")
    assert looks.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"rescale_offset": True}, "rescale_offset"),
        ({"resample": 7}, "resample 7"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"image_processor_type": "NoSuchImageProcessor"}, "NoSuchImageProcessor"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_what_is_not_covered_is_refused_by_name(
    values: dict[str, Any], named: str, nested: bool, tmp_path: Path
) -> None:
    file = "processor_config.json" if nested else "preprocessor_config.json"
    (tmp_path / file).write_text(json.dumps({"image_processor": values} if nested else values))
    with pytest.raises(UserError, match=named) as error:
        hugging_face_preprocessing(CONFIG, str(tmp_path))
    assert file in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("crop_pct", "crop_mode"),
    [
        (0.875, "center"),
        (1.0, "center"),
        (0.5, "center_down"),
        (1.0, "squash"),
        (0.875, "squash"),
        (0.875, "border"),
        (1.0, "border"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_saved_model_s_processor_says_the_same_again(
    crop_pct: float, crop_mode: str, channels: int, tmp_path: Path
) -> None:
    looks = Preprocessing(
        (channels, 224, 224), (0.25,) * channels, (0.5,) * channels, "bilinear", crop_pct, crop_mode
    )
    image_processor(looks).save_pretrained(tmp_path)
    config = ViTConfig(image_size=224, num_channels=channels)
    assert hugging_face_preprocessing(config, str(tmp_path)) == looks


@pytest.mark.parametrize("crop_pct", [0.9, 0.95, 224 / 354, 224 / 400])
def test_a_saved_model_s_processor_resizes_to_the_same_pixels(crop_pct: float, tmp_path: Path) -> None:
    """timm rounds down: 0.9 of 248 pixels, not of 249; and 224 / (224 / 354) is a little below 354."""
    looks = Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bilinear", crop_pct, "center")
    processor = image_processor(looks)
    processor.save_pretrained(tmp_path)
    again = hugging_face_preprocessing(ViTConfig(image_size=224), str(tmp_path))
    sizes = [step.size for step in (looks.eval_transform().steps[1], again.eval_transform().steps[1])]
    assert sizes == [processor.size["shortest_edge"]] * 2


@pytest.mark.parametrize("resized", [354, 375, 400, 408])
def test_a_processor_s_size_is_that_of_our_pixels(resized: int, tmp_path: Path) -> None:
    processor = BitImageProcessor(size={"shortest_edge": resized}, crop_size=224, do_center_crop=True)
    processor.save_pretrained(tmp_path)
    looks = hugging_face_preprocessing(ViTConfig(image_size=224), str(tmp_path))
    assert looks.eval_transform().steps[1].size == resized


def test_a_saved_model_s_processor_crops_what_timm_crops(tmp_path: Path) -> None:
    """Up to the rounding of a resize in whole numbers, on a picture that is no square."""
    looks = Preprocessing((3, 28, 28), (0.5,) * 3, (0.25,) * 3, "bicubic", 0.875, "center")
    image_processor(looks).save_pretrained(tmp_path)
    smooth = np.add.outer(np.arange(64) * 2, np.arange(48))[..., None] + np.array([0, 20, 60])
    picture = Image.fromarray(smooth.astype(np.uint8))
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(looks.eval_transform()(picture), theirs.float(), rtol=0, atol=0.04)
