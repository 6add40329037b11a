"""Sizes of which no student can be made, or that do not fit its teacher, are one line; another size later
resamples positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba import convert, load_student, save_student
from transmamba.config.registry import STUDENTS
from transmamba.core.tower import StudentSpec
from transmamba.errors import UserError

# options of a student -> what is said of them, of a teacher with 8-pixel pictures in patches of 2
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "name of larger patches": (
        {"student": "{}_tiny_patch16_224"},
        "has patches of 16 pixels, the teacher of 2",
    ),
    "larger than the picture": ({"patch_size": 16}, "img_size is .*, smaller than a patch of 16"),
    "picture of a pixel": ({"img_size": 1}, "img_size is 1, smaller than a patch of 2"),
    "picture of a word": ({"img_size": "a"}, "img_size is a; write pixels"),
    "no patch": ({"patch_size": 0}, "patch_size is 0; write pixels"),
    "no channels": ({"in_chans": 0}, "in_chans is 0; write a whole number"),
    "other channels": ({"in_chans": 4}, "teacher has 3 input channels, student 4"),
    "no layers": ({"depth": 0}, "depth is 0; write a whole number"),
    "half a layer": ({"depth": 1.5}, "depth is 1.5; write a whole number"),
    "negative width": ({"embed_dim": -4}, "embed_dim is -4; write a whole number"),
    "rate of 2": ({"drop_path_rate": 2}, "drop_path_rate is 2; write a number from 0"),
    "rate in words": ({"drop_rate": "x"}, "drop_rate is 'x'; write a number from 0"),
    "weights": ({"pretrained": True}, "kwargs.pretrained is no option"),
    "no option": ({"foo": 1}, "unknown option 'foo'"),
}
WRONG_VIM: dict[str, tuple[dict[str, Any], str]] = {
    "no states": ({"d_state": 0}, "d_state is 0; write a whole number"),
    "no expansion": ({"expand": 0}, "expand is 0"),
    "gap between patches": ({"stride": 3}, "stride is 3; write pixels from 1 to the patch's 2"),
    "any size": ({"dynamic_img_size": True}, "dynamic_img_size is not for a Vim; call set_input_size"),
    "a norm of nobody": ({"pre_norm": "q"}, "pre_norm is 'q'"),
}
WRONG_SSD: dict[str, tuple[dict[str, Any], str]] = {
    "another grid": ({"img_size": 16}, "patch grid"),
    "width of no heads": ({"embed_dim": 7}, "embed_dim is 7, no multiple of num_heads, 2"),
}
CASES = [
    (kind, name, *case)
    for kind, own in (("vim", WRONG_VIM), ("ssd_vit", WRONG_SSD))
    for name, case in {**WRONG, **own}.items()
]


@pytest.mark.parametrize(("kind", "name", "options", "said"), CASES, ids=lambda value: str(value)[:30])
def test_a_wrong_size_is_one_line(
    kind: str, name: str, options: dict[str, Any], said: str, make_vit: Callable[..., Any]
) -> None:
    teacher = make_vit(in_chans=3, embed_dim=16, num_heads=2)
    student = options.get("student", kind).format(kind)
    kwargs = {key: value for key, value in options.items() if key != "student"}
    with pytest.raises(UserError, match=said) as error:
        convert(teacher, student, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vim_tiny_patch16_224", "ssd_vit_tiny_patch16_224"])
def test_a_recipe_s_sizes_are_one_line_too(name: str, make_teacher: Callable[..., Any]) -> None:
    teacher = make_teacher()
    kind = "ssd_vit" if name.startswith("ssd") else "vim"
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing, num_classes=10)
    with pytest.raises(UserError, match="smaller than a patch of 16"):
        STUDENTS[kind](model=name, kwargs={"patch_size": 16}).build(spec)
    for part in (kind, "timm"):
        with pytest.raises(ValueError, match=r"kwargs\.pretrained is no option"):
            STUDENTS[part](model=name, kwargs={"pretrained": True})


# --- set_input_size ---


def resized(position: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """By torch alone: the class token's row in the middle of both."""
    here, there = old[0] * old[1] // 2, new[0] * new[1] // 2
    patches = torch.cat([position[:, :here], position[:, here + 1 :]], dim=1)
    grid = patches.transpose(1, 2).unflatten(2, old)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    return torch.cat([grid[:, :there], position[:, here : here + 1], grid[:, there:]], dim=1)


@pytest.mark.parametrize("size", [(12, 8), (16, 16), (8, 8), (6, 10)])
def test_a_vim_takes_another_size(
    size: tuple[int, int], tmp_path: Path, randomise: Callable[..., None]
) -> None:
    model: Any = timm.create_model("vim_micro_patch2_8", depth=2).eval()
    randomise(model)
    before, grid = model.pos_embed.detach().clone(), (size[0] // 2, size[1] // 2)
    model.set_input_size(img_size=size)
    assert model.layout.grid == grid and model.cls_position == grid[0] * grid[1] // 2
    torch.testing.assert_close(model.pos_embed, resized(before, (4, 4), grid), rtol=1e-5, atol=1e-5)
    images = torch.randn(2, 3, *size)
    save_student(model, tmp_path)
    loaded: Any = load_student(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-5, atol=1e-5)
    assert loaded.layout == model.layout and model.forward_intermediates(images)[1][0].shape[-2:] == grid


@pytest.mark.parametrize("name", ["vim_micro_patch2_8", "ssd_vit_micro_patch2_8"])
def test_set_input_size_is_timm_s(name: str, tmp_path: Path) -> None:
    model: Any = timm.create_model(name, depth=1).eval()
    model.set_input_size(img_size=(16, 16), patch_size=(4, 4))
    images = torch.randn(1, 3, 16, 16)
    assert model.patch_embed.grid_size == (4, 4)
    save_student(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path)(images), model(images), rtol=1e-5, atol=1e-5)
    model.set_input_size(img_size=32)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_a_size_below_a_patch_is_refused_and_changes_nothing() -> None:
    model: Any = timm.create_model("vim_micro_patch2_8", depth=1)
    with pytest.raises(ValueError, match="smaller than a patch"):
        model.set_input_size(img_size=1)
    assert model.layout.grid == (4, 4)


def test_a_recipe_may_say_what_its_images_look_like() -> None:
    overlay = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    part = STUDENTS["timm"](model="vit_tiny_patch16_224", kwargs={"pretrained_cfg_overlay": overlay})
    assert part.preprocessing().mean == (0.1, 0.2, 0.3)
