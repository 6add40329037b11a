"""Vim's official names, shapes, counts and checkpoints (hustvl/Vim, state dict of the v2 mixer)."""

from __future__ import annotations

import argparse
import collections
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import transmamba  # noqa: F401  (registers the students in timm)
from transmamba.errors import UserError
from transmamba.students.vim.names import name_of_width
from transmamba.students.vim.official import checkpoint_filter_fn, read_official_checkpoint
from transmamba.subcloning.checkpoint import convert_checkpoint


def official_shapes(
    dim: int, layers: int = 24, states: int = 16, taps: int = 4
) -> dict[str, tuple[int, ...]]:
    inner, rank = 2 * dim, math.ceil(dim / 16)
    table: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 197, dim),
        "norm_f.weight": (dim,),
        "head.weight": (1000, dim),
        "head.bias": (1000,),
    }
    for i in range(layers):
        table[f"layers.{i}.norm.weight"] = (dim,)
        mixer = f"layers.{i}.mixer."
        table[f"{mixer}in_proj.weight"] = (2 * inner, dim)
        table[f"{mixer}out_proj.weight"] = (dim, inner)
        for suffix, log in (("", "A_log"), ("_b", "A_b_log")):
            table[f"{mixer}conv1d{suffix}.weight"] = (inner, 1, taps)
            table[f"{mixer}conv1d{suffix}.bias"] = (inner,)
            table[f"{mixer}x_proj{suffix}.weight"] = (rank + 2 * states, inner)
            table[f"{mixer}dt_proj{suffix}.weight"] = (inner, rank)
            table[f"{mixer}dt_proj{suffix}.bias"] = (inner,)
            table[f"{mixer}{log}"] = (inner, states)
            table[f"{mixer}D{suffix}"] = (inner,)
    return table


@pytest.mark.parametrize(
    ("name", "dim", "millions"),
    [
        ("vim_tiny_patch16_224", 192, 7.15),
        ("vim_small_patch16_224", 384, 25.80),
        ("vim_base_patch16_224", 768, 97.60),
    ],
)
def test_names_shapes_and_count_are_the_official_ones(name: str, dim: int, millions: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == official_shapes(dim)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert model.cls_position == 98 and dict(model.layout.special) == {"cls": 98}


def test_tiny_shapes_are_those_printed_in_the_official_state_dict() -> None:
    table = official_shapes(192)
    mixer = "layers.0.mixer."
    assert table[f"{mixer}in_proj.weight"] == (768, 192) and table[f"{mixer}x_proj.weight"] == (44, 384)
    assert table[f"{mixer}dt_proj.weight"] == (384, 12) and table[f"{mixer}A_log"] == (384, 16)


def fake_state(**options: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    model = timm.create_model("vim_tiny_patch16_224", embed_dim=16, depth=1, num_classes=3, **options)
    return {key: torch.randn(t.shape, generator=generator) * 0.2 for key, t in model.state_dict().items()}


def test_official_checkpoint_becomes_a_student_folder(tmp_path: Path) -> None:
    state = fake_state()
    path = tmp_path / "vim.pth"
    args = argparse.Namespace(model="vim_tiny", lr=5e-4, betas=None)
    torch.save({"model": state, "optimizer": {"step": 3}, "epoch": 1, "args": args}, path)
    assert read_official_checkpoint(path).keys() == state.keys()
    report = convert_checkpoint(
        str(path), tmp_path / "out", student="vim_tiny_patch16_224", options=dict(embed_dim=16, depth=1)
    )
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert loaded.num_classes == 3
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())
    assert report.covered == 1.0 and report.counts["copied"] == len(state)


def test_an_official_checkpoint_goes_by_the_name_of_its_width(tmp_path: Path) -> None:
    state = {key: torch.zeros(shape) for key, shape in official_shapes(192).items()}
    torch.save(state, tmp_path / "vim.pth")
    convert_checkpoint(str(tmp_path / "vim.pth"), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["architecture"] == "vim_tiny_patch16_224"


@pytest.mark.parametrize(("width", "name"), [(384, "vim_small"), (768, "vim_base")])
def test_the_name_of_a_width(width: int, name: str) -> None:
    assert name_of_width(width) == f"{name}_patch16_224"


def test_an_official_checkpoint_of_another_width_asks_for_a_name(tmp_path: Path) -> None:
    path = tmp_path / "vim.pth"
    for state, student in ((fake_state(), "vim"), (fake_state(), "ssd_vit"), ({}, "vim")):
        torch.save({"layers.0.mixer.A_b_log": torch.zeros(1), **state}, path)
        with pytest.raises(
            UserError, match=f"is a Vim of width {16 if state else 0}; write --student"
        ) as error:
            convert_checkpoint(str(path), tmp_path / "out", student=student)
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_bare_state_dict_loads_too(tmp_path: Path) -> None:
    torch.save(fake_state(), tmp_path / "vim.pth")
    assert "layers.0.mixer.A_b_log" in read_official_checkpoint(tmp_path / "vim.pth")


def test_a_pickle_with_another_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vim.pth"
    torch.save({"model": fake_state(), "args": argparse.Namespace(), "x": collections.UserList([1])}, path)
    with pytest.raises(UserError, match=r"vim\.pth' is refused") as error:
        read_official_checkpoint(path)
    assert "\n" not in str(error.value)
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.save({"args": argparse.Namespace()}, path)
        torch.load(path, weights_only=True)  # the permission did not outlive the reading


@pytest.mark.parametrize("kind", ["absent", "text", "list", "no vim"])
def test_other_files_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "vim.pth"
    if kind == "text":
        path.write_text("hello")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "no vim":
        torch.save({"model": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"vim\.pth") as error:
        read_official_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_size_says_so(tmp_path: Path) -> None:
    torch.save({"model": fake_state()}, tmp_path / "vim.pth")
    with pytest.raises(UserError, match="does not fit vim_tiny_patch16_224"):
        convert_checkpoint(
            str(tmp_path / "vim.pth"), tmp_path / "out", student="vim_tiny_patch16_224", options=dict(depth=1)
        )
    assert not (tmp_path / "out").exists()


def test_positions_are_resized_around_the_middle_class_token() -> None:
    """The official script splits off row 0, which is a patch; the class token's row is 98 of 197."""
    state = fake_state()
    model = timm.create_model(
        "vim_tiny_patch16_224", embed_dim=16, depth=1, num_classes=3, img_size=(160, 256)
    )
    assert model.layout.grid == (10, 16) and model.cls_position == 80
    resized = checkpoint_filter_fn({"model": state}, model)["pos_embed"]
    old = state["pos_embed"][0]
    patches = torch.cat([old[:98], old[99:]]).T.reshape(1, 16, 14, 14)
    expected = F.interpolate(patches, size=(10, 16), mode="bicubic", antialias=True)[0].flatten(1).T
    torch.testing.assert_close(resized[0, 80], old[98], rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([resized[0, :80], resized[0, 81:]]), expected, rtol=1e-5, atol=1e-5)
    model.load_state_dict(checkpoint_filter_fn({"model": state}, model))


def test_patches_are_resized_and_all_else_is_untouched() -> None:
    state = fake_state()
    model = timm.create_model("vim_tiny_patch16_224", embed_dim=16, depth=1, num_classes=3, patch_size=32)
    filtered = checkpoint_filter_fn(state, model)
    model.load_state_dict(filtered)
    changed = {key for key, tensor in filtered.items() if tensor is not state[key]}
    assert changed == {"patch_embed.proj.weight", "pos_embed"}
    # a smooth picture, twice as large in both directions, gives the same patch embeddings
    small = torch.full((1, 3, 16, 16), 0.7)
    large = torch.full((1, 3, 32, 32), 0.7)
    before = F.conv2d(small, state["patch_embed.proj.weight"])
    after = F.conv2d(large, filtered["patch_embed.proj.weight"])
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_class_token_sits_in_the_middle() -> None:
    model: Any = timm.create_model("vim_micro_patch2_8", depth=1, in_chans=1)
    with torch.no_grad():
        model.cls_token.fill_(7)
        model.pos_embed.zero_()
        embedded = model._embed(torch.zeros(1, 1, 8, 8)) - model.patch_embed.proj.bias
    at = [bool((token + model.patch_embed.proj.bias == 7).all()) for token in embedded[0]]
    assert at == [position == 8 for position in range(17)]


def test_output_projections_start_smaller_in_deeper_models() -> None:
    torch.manual_seed(0)
    shallow: Any = timm.create_model("vim_micro_patch2_8", depth=1)
    deep: Any = timm.create_model("vim_micro_patch2_8", depth=16)
    ratio = deep.layers[0].mixer.out_proj.weight.std() / shallow.layers[0].mixer.out_proj.weight.std()
    assert float(ratio) == pytest.approx(1 / 4, rel=0.05)
