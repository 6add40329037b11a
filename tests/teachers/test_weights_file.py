"""A file of weights as a teacher: whose model it is has to be said, and what is in it follows."""

from __future__ import annotations

import argparse
import collections
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from transmamba import load_teacher
from transmamba.config.registry import TEACHERS
from transmamba.errors import UserError
from transmamba.subcloning.checkpoint import convert_checkpoint

NAME = "test_vit"  # timm's smallest, of 160 pixels


def vit(**options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(NAME, **{"num_classes": 5, **options}).eval()


def logits(teacher: Any, images: Tensor) -> Tensor:
    return teacher(images).logits()


def wrapped(kind: str, state: dict[str, Tensor]) -> Any:
    named = {f"module.{name}": tensor for name, tensor in state.items()}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    return {
        "bare": state,
        "model": {"model": state, "epoch": 3, "args": argparse.Namespace(lr=1.0)},
        "state_dict": {"state_dict": state, "optimizer": {"step": 1}},
        "distributed": {"state_dict": named},
        "compiled": compiled,
        "average": {"state_dict": {n: t + 1 for n, t in state.items()}, "state_dict_ema": state},
    }[kind]


@pytest.mark.parametrize("kind", ["bare", "model", "state_dict", "distributed", "compiled", "average"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_every_wrapping_of_a_state_dict(kind: str, suffix: str, tmp_path: Path) -> None:
    model, path, images = vit(), tmp_path / f"m{suffix}", torch.randn(1, 3, 160, 160)
    torch.save(wrapped(kind, model.state_dict()), path)
    teacher = load_teacher(path, NAME)
    assert teacher.num_classes == 5 and teacher.licence is None and teacher.base_model is None
    with torch.no_grad():
        torch.testing.assert_close(logits(teacher, images), model(images), rtol=1e-4, atol=1e-4)


def test_safetensors_and_every_way_to_say_it(tmp_path: Path) -> None:
    model, path, images = vit(in_chans=1), str(tmp_path / "m.safetensors"), torch.randn(1, 1, 160, 160)
    save_file(model.state_dict(), path)
    wanted = logits(load_teacher(path, architecture=NAME), images)
    for name in ("timm_vit", "auto"):
        teacher = TEACHERS[name](model=path, architecture=NAME).build()
        assert teacher.preprocessing.input_size[0] == 1
        assert torch.equal(logits(teacher, images), wanted)
    report = convert_checkpoint(path, tmp_path / "out", architecture=NAME)
    assert report.covered > 0 and (tmp_path / "out" / "config.json").is_file()


def test_weights_without_a_head_teach_features(tmp_path: Path) -> None:
    torch.save(vit(num_classes=0).state_dict(), tmp_path / "m.pth")
    assert load_teacher(tmp_path / "m.pth", NAME).num_classes is None


def test_without_its_architecture_it_says_what_to_write(tmp_path: Path) -> None:
    torch.save(vit().state_dict(), tmp_path / "m.pth")
    for attempt in (
        lambda: load_teacher(tmp_path / "m.pth"),
        lambda: convert_checkpoint(str(tmp_path / "m.pth"), tmp_path / "out"),
        lambda: TEACHERS["timm_vit"](model=str(tmp_path / "m.pth")).build(),
    ):
        with pytest.raises(
            UserError, match=r"m\.pth.*weights alone.*(--architecture NAME|timm name)"
        ) as error:
            attempt()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("norm.weight"), r"it lacks norm\.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "the model has no extra"),
        (
            lambda s: s.update(pos_embed=torch.zeros(1, 5, 64)),
            "pos_embed is 1 x 5 x 64 there and 1 x 101 x 64 in the model",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: Any, said: str, tmp_path: Path) -> None:
    state = dict(vit().state_dict())
    change(state)
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(UserError, match=said) as error:
        load_teacher(tmp_path / "m.pth", NAME)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["text", "list", "empty", "class", "no safetensors", "absent"])
def test_what_is_no_checkpoint_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("m.safetensors" if kind == "no safetensors" else "m.pth")
    if kind in ("text", "no safetensors"):
        path.write_text("hello, world")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "empty":
        path.touch()
    elif kind == "class":
        torch.save({"model": collections.UserList([1])}, path)
    said = {
        "text": "neither what torch.save writes nor safetensors",
        "list": "holds no weights by name",
        "empty": "is empty; copy or download it again",
        "class": r"would run code \(collections.UserList\)",
        "no safetensors": "neither what torch.save writes nor safetensors",
        "absent": "no such file",
    }[kind]
    for attempt in (
        lambda: load_teacher(path),
        lambda: convert_checkpoint(str(path), tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=said) as error:
            attempt()
        assert "\n" not in str(error.value) and path.name in str(error.value)


def test_an_unknown_architecture_or_one_too_many(tmp_path: Path) -> None:
    torch.save(vit().state_dict(), tmp_path / "m.pth")
    with pytest.raises(UserError, match="unknown timm model 'test_vitt'"):
        load_teacher(tmp_path / "m.pth", "test_vitt")
    with pytest.raises(UserError, match="no file of weights; an architecture goes with one"):
        load_teacher("vit_tiny_patch16_224", NAME)
    with pytest.raises(UserError, match=r"absent\.pth': no such file$"):
        load_teacher(tmp_path / "absent.pth", NAME)
    with pytest.raises(UserError, match="VisionTransformer and distilled DeiT"):
        load_teacher(tmp_path / "m.pth", "test_resnet")
