"""hustvl/Vim's stride-8 checkpoints, of which a model of ours makes the same numbers; other sizes are
resampled, said so, or refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from transmamba import load_student
from transmamba.errors import UserError
from transmamba.subcloning.checkpoint import convert_checkpoint

OPTIONS: dict[str, Any] = dict(embed_dim=16, depth=2)
NAME = "vim_tiny_patch16_224"


def state(positions: int, **options: Any) -> dict[str, Tensor]:
    model = timm.create_model(NAME, num_classes=3, **OPTIONS, **options)
    generator = torch.Generator().manual_seed(9)
    made = {key: torch.randn(t.shape, generator=generator) * 0.2 for key, t in model.state_dict().items()}
    return {**made, "pos_embed": torch.randn(1, positions + 1, 16, generator=generator)}


def converted(tmp_path: Path, saved: dict[str, Tensor], args: Any = None, **options: Any) -> tuple[Any, Any]:
    torch.save({"model": saved, "args": args}, tmp_path / "vim.pth")
    report = convert_checkpoint(
        str(tmp_path / "vim.pth"), tmp_path / "out", student=NAME, options={**OPTIONS, **options}
    )
    return load_student(tmp_path / "out"), report


def embedded(saved: dict[str, Tensor], images: Tensor, stride: int) -> Tensor:
    """The official model's first stream, written anew."""
    patches = F.conv2d(
        images, saved["patch_embed.proj.weight"], saved["patch_embed.proj.bias"], stride=stride
    )
    tokens = patches.flatten(2).transpose(1, 2)
    middle = tokens.shape[1] // 2
    cls_token = saved["cls_token"].expand(len(images), -1, -1)
    return torch.cat([tokens[:, :middle], cls_token, tokens[:, middle:]], dim=1) + saved["pos_embed"]


@pytest.mark.parametrize(
    ("positions", "size", "stride"),
    [(27 * 27, 224, 8), (14 * 14, 224, 16), (53 * 53, 224, 4), (12 * 12, 192, 16)],
)
def test_a_checkpoint_keeps_its_own_patches_and_positions(
    positions: int, size: int, stride: int, tmp_path: Path
) -> None:
    saved, images = state(positions), torch.randn(1, 3, size, size)
    args = argparse.Namespace(model="vim", input_size=size)
    model, report = converted(tmp_path, saved, args)
    assert {row.kind for row in report.rows} == {"copied"} and report.counts["resampled"] == 0
    assert model.layout.num_patches == positions
    assert all(torch.equal(tensor, saved[key]) for key, tensor in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(
            model._embed(images), embedded(saved, images, stride), rtol=1e-4, atol=1e-4
        )
        assert model(images).shape == (1, 3)
    assert model.feature_info[0]["reduction"] == stride


def test_a_size_that_the_user_gives_is_resampled_and_said_so(tmp_path: Path) -> None:
    model, report = converted(tmp_path, state(14 * 14), img_size=160, patch_size=32)
    kinds = {row.target: row.kind for row in report.rows}
    assert kinds["pos_embed"] == kinds["patch_embed.proj.weight"] == "resampled"
    assert report.counts["resampled"] == 2 and model.layout.grid == (5, 5)
    (tmp_path / "a").mkdir()
    report = converted(tmp_path / "a", state(27 * 27), stride=16)[1]
    assert {row.target for row in report.rows if row.kind == "resampled"} == {"pos_embed"}


@pytest.mark.parametrize("positions", [30 * 30, 200])
def test_positions_that_follow_from_no_stride_are_refused(positions: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has {positions} positions, which 224-pixel images") as error:
        converted(tmp_path, state(positions))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_overlapping_patches_are_an_option_of_any_vim(tmp_path: Path) -> None:
    model: Any = timm.create_model("vim_micro_patch2_8", depth=1, patch_size=4, stride=2).eval()
    assert model.layout.grid == (3, 3) and model.patch_embed.feat_ratio() == 2
    assert model.patch_embed.dynamic_feat_size((12, 8)) == (5, 3)
    images = torch.randn(1, 3, 8, 8)
    assert model.forward_intermediates(images)[1][0].shape[-2:] == (3, 3)
    model.set_input_size(img_size=(12, 8))
    assert model.layout.grid == (5, 3) and model(torch.randn(1, 3, 12, 8)).shape == (1, 10)
    with torch.device("meta"):
        plain = timm.create_model("vim_micro_patch2_8", depth=1, stride=2)
    assert type(plain.patch_embed) is timm.layers.PatchEmbed, "side by side it is timm's own"
