"""What gated MLPs, attention pools and rotary positions become in an image student: taken rightly, named as
dropped, or refused by name."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import GluMlp, SwiGLU
from torch import Tensor

from transmamba import UserError, adapt_teacher, convert
from transmamba.core.tower import StudentSpec
from transmamba.ecosystems.find import save_model
from transmamba.students.ssd_vit.names import SsdVit
from transmamba.subcloning.subclone import SubcloneConfig, subclone
from transmamba.views.rope import Rope
from transmamba.views.sublayers import Attention

GATED: dict[str, Any] = dict(mlp_layer=SwiGLU, act_layer="silu", mlp_ratio=2.75)
MAP: dict[str, Any] = dict(global_pool="map", class_token=False)
EXACT: dict[str, dict[str, Any]] = {
    "SwiGLU": GATED,
    "GEGLU": dict(mlp_layer=SwiGLU, act_layer="gelu"),
    "no bias, rms": dict(**GATED, proj_bias=False, norm_layer="rmsnorm"),
    "map": MAP,
    "map over patches": dict(global_pool="map"),
    "map over all": dict(global_pool="map", reg_tokens=1, pool_include_prefix=True),
    "map, norm after it": dict(**MAP, fc_norm=True),
    "both": dict(**GATED, **MAP),
    "norm of the patches": dict(embed_norm_layer="layernorm"),
    "AIMv2": dict(
        **GATED, norm_layer="rmsnorm", embed_norm_layer="rmsnorm", class_token=False, global_pool="avg"
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_with_attention_everywhere_an_ssd_vit_is_the_teacher(
    case: str, make_vit: Callable[..., Any], gray_images: Tensor, tmp_path: Any
) -> None:
    model = make_vit(**EXACT[case])
    student, report = convert(model, "ssd_vit", attention_layers=[0, 1, 2])
    assert report.covered == 1.0 and not report.dropped
    save_model(student, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        for each in (student, again):
            torch.testing.assert_close(each(gray_images), model(gray_images), rtol=1e-5, atol=1e-5)


def test_a_pool_that_timm_s_cannot_be_is_named_and_not_taken(make_vit: Callable[..., Any]) -> None:
    model = make_vit(**MAP)
    model.attn_pool.num_heads, model.attn_pool.head_dim = 2, 32
    student, report = convert(model, "ssd_vit")
    assert student.global_pool == "avg"
    dropped = {drop.source: drop.why for drop in report.dropped}
    assert {"pool.latent", "pool.k.weight", "pool.up.bias"} <= dropped.keys()
    assert "by avg pooling, the teacher's an attention pool" in dropped["pool.latent"]
    assert torch.equal(student.head.weight, model.head.weight)


@pytest.mark.parametrize("cls", [True, False])
def test_a_vim_names_what_it_reads_instead_of_a_pool(cls: bool, make_vit: Callable[..., Any]) -> None:
    model = make_vit(global_pool="map", class_token=cls)
    student, report = convert(model, "vim")
    assert student.global_pool == ("token" if cls else "avg")
    whys = {drop.why for drop in report.dropped if drop.source.startswith("pool.")}
    read = "the class token" if cls else "the mean of the patches"
    assert whys == {f"the student's head reads {read}, the teacher's an attention pool"}
    assert torch.equal(student.head.weight, model.head.weight) and read in str(report)


@pytest.mark.parametrize("options", [{}, dict(gate_bias=True), dict(proj_bias=True)], ids=str)
def test_a_vim_takes_a_silu_gate_as_its_own(options: dict[str, Any], make_vit: Callable[..., Any]) -> None:
    """Instead of the neutral gate that `mimic` begins with."""
    model = make_vit(**{**GATED, "mlp_ratio": 2})
    student, report = convert(model, "vim", init=SubcloneConfig(importance="uniform", mimic=True), **options)
    block, mixer = model.blocks[1], student.layers[3].mixer
    u = torch.randn(2, 17, 64)
    z = mixer.in_proj(u)[..., mixer.inner :]
    z = z + mixer.gate_bias if "gate_bias" in options else z
    bias = block.mlp.fc1_g.bias if options else None
    torch.testing.assert_close(z, F.linear(u, block.mlp.fc1_g.weight, bias), rtol=1e-5, atol=1e-5)
    lost = {drop.source for drop in report.dropped if "gate" in drop.source}
    assert lost == (set() if options else {f"blocks.{t}.mlp.gate.bias" for t in range(3)})


def test_a_vim_names_the_norm_of_the_patches(make_vit: Callable[..., Any]) -> None:
    _, report = convert(make_vit(embed_norm_layer="layernorm"), "vim")
    assert "embedding.patch_norm" in {drop.source for drop in report.dropped}


def test_a_gate_of_another_activation_is_named(make_vit: Callable[..., Any]) -> None:
    _, report = convert(make_vit(mlp_layer=GluMlp), "vim")
    dropped = {drop.source: drop.why for drop in report.dropped}
    assert "SiLU" in dropped["blocks.0.mlp.gate.weight"] and "SiLU" in dropped["blocks.2.mlp.gate.bias"]


def with_attention(make_vit: Callable[..., Any], **changes: Any) -> Any:
    """A teacher whose attention does more."""
    teacher = copy.copy(adapt_teacher(make_vit()))
    tower = teacher.view.towers["image"]
    sublayers = tuple(
        dataclasses.replace(sublayer, **changes) if isinstance(sublayer, Attention) else sublayer
        for sublayer in tower.sublayers
    )
    towers = {"image": dataclasses.replace(tower, sublayers=sublayers)}
    teacher.view = dataclasses.replace(teacher.view, towers=towers)
    return teacher


def students_of(teacher: Any) -> list[Any]:
    from transmamba.students.vim.names import Vim

    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing, num_classes=10)
    return [kind.build(spec) for kind in (Vim(), SsdVit())]


def test_rotary_positions_are_named_or_refused(make_vit: Callable[..., Any]) -> None:
    teacher = with_attention(make_vit, rope=Rope(torch.rand(8)))
    for student in students_of(teacher):
        report, _ = subclone(student, teacher, SubcloneConfig())
        assert [d.source for d in report.dropped if "rope" in d.source] == [
            f"blocks.{t}.attention.rope" for t in range(3)
        ]
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing, num_classes=10)
    student: Any = SsdVit(attention_layers=(1,)).build(spec)
    with pytest.raises(UserError, match=r"cannot keep the attention of blocks\.1: it has rope") as caught:
        subclone(student, teacher, SubcloneConfig())
    assert "\n" not in str(caught.value)


def test_shared_heads_are_refused(make_vit: Callable[..., Any]) -> None:
    teacher = with_attention(make_vit, kv_heads=2)
    for student in students_of(teacher):
        with pytest.raises(UserError, match=r"blocks\.0\.attention has 4 heads of q on 2 of k and v"):
            subclone(student, teacher, SubcloneConfig())
