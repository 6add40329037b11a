from __future__ import annotations

import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from transmamba.core.preprocessing import ToChannels
from transmamba.data import Preprocessing
from transmamba.errors import UserError


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "resnet18"])
def test_agrees_with_timm_on_timm_models(name: str, picture: Image.Image) -> None:
    model = timm.create_model(name)
    theirs = create_transform(**resolve_model_data_config(model))
    ours = Preprocessing.from_pretrained_cfg(model.pretrained_cfg)
    assert torch.equal(ours.eval_transform()(picture), theirs(picture))
    assert Preprocessing.from_pretrained_cfg(ours.to_pretrained_cfg()) == ours


def test_empty_cfg_means_what_timm_means_by_it(picture: Image.Image) -> None:
    theirs = create_transform(**resolve_model_data_config(torch.nn.Identity(), pretrained_cfg={"mean": None}))
    assert torch.equal(Preprocessing.from_pretrained_cfg({}).eval_transform()(picture), theirs(picture))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(3, 24, 24), (3, 16, 32)])
def test_geometry_is_the_transform_without_normalisation(
    picture: Image.Image, size: tuple[int, int, int], crop_mode: str
) -> None:
    ours = Preprocessing(size, (0.0,) * 3, (1.0,) * 3, crop_mode=crop_mode, crop_pct=0.9)
    pixels = np.array(ours.geometry()(picture))
    assert pixels.shape == (*size[1:], 3)
    assert torch.equal(ours.eval_transform()(picture), torch.from_numpy(pixels).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.99])
def test_keeps_is_true_only_where_geometry_changes_nothing(
    picture: Image.Image, crop_pct: float, crop_mode: str
) -> None:
    # 0.99 rounds down to the same size
    same = Preprocessing((3, 50, 70), (0.5,) * 3, (0.5,) * 3, crop_pct=crop_pct, crop_mode=crop_mode)
    assert same.keeps(50, 70)
    assert np.array_equal(np.asarray(same.geometry()(picture)), np.asarray(picture))
    assert not same.keeps(70, 50)
    assert not Preprocessing((3, 50, 70), (0.5,) * 3, (0.5,) * 3, crop_pct=0.9).keeps(50, 70)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_channels_asked_for(picture: Image.Image, mode: str, channels: int) -> None:
    via = picture.convert("L") if mode in ("I", "F", "LA") else picture
    changed = ToChannels(channels)(via.convert(mode))
    assert changed.mode == {1: "L", 3: "RGB"}[channels]
    assert np.asarray(changed).std() > 20  # still a picture


def test_transparency_lies_over_white_and_hidden_colours_stay_hidden() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(ToChannels(3)(clear)).min() == 255
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 200])
    assert np.asarray(ToChannels(3)(palette))[0, 0].tolist() == [0, 0, 200]
    palette.info["transparency"] = 0
    assert np.asarray(ToChannels(3)(palette)).min() == 255


def test_sixteen_bits_are_scaled_to_eight() -> None:
    deep = Image.fromarray(np.array([[0, 0x1234], [0x80FF, 0xFFFF]], dtype=np.uint16))
    assert np.asarray(ToChannels(1)(deep)).tolist() == [[0, 0x12], [0x80, 0xFF]]


def test_grayscale_models_and_pickling(picture: Image.Image) -> None:
    ours = Preprocessing.from_pretrained_cfg(
        {"input_size": (1, 20, 20), "mean": (0.1, 0.2, 0.3), "std": (0.5,)}
    )
    assert ours.mean == pytest.approx((0.2,)) and ours.std == (0.5,)
    transform = pickle.loads(pickle.dumps(ours.eval_transform()))
    assert transform(picture).shape == (1, 20, 20)


def test_wrong_channels_are_refused() -> None:
    with pytest.raises(UserError, match="1 or 3 channels, got 4"):
        Preprocessing((4, 8, 8), (0.5,) * 4, (0.5,) * 4)
    with pytest.raises(UserError, match=r"mean .* for 3 channels"):
        Preprocessing((3, 8, 8), (0.5,), (0.5,))
