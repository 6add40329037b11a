"""ssd_vit is its teacher but for the mixers: with attention put back, its logits are the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from transmamba import UserError, adapt_teacher, convert
from transmamba.config.registry import STUDENTS
from transmamba.core.output import Capture, Context
from transmamba.core.tower import StudentSpec
from transmamba.students.ssd_vit.names import shape_of
from transmamba.subcloning.subclone import SubcloneConfig, subclone

SHAPES: dict[str, dict[str, Any]] = {
    "cls": {},
    "avg": dict(global_pool="avg"),
    "avg_norm_first": dict(global_pool="avg", fc_norm=False),
    "no_cls": dict(global_pool="avg", class_token=False),
    "cls_fc_norm": dict(fc_norm=True),
    "layer_scale": dict(init_values=0.1),
    "registers": dict(reg_tokens=2),
    "deit3": dict(no_embed_class=True, init_values=0.1),
    "qk_norm": dict(qk_norm=True),
    "pre_norm": dict(pre_norm=True),
    "no_qkv_bias": dict(qkv_bias=False),
    "no_proj_bias": dict(proj_bias=False),
    "rms_norm": dict(norm_layer="rmsnorm"),
    "torch_rms_norm": dict(norm_layer=nn.RMSNorm),
    "quick_gelu": dict(act_layer="quick_gelu"),
    "mlp_ratio": dict(mlp_ratio=2.5),
    "no_final_norm": dict(final_norm=False),
    "no_positions": dict(pos_embed="none"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_with_attention_everywhere_it_is_the_teacher(
    case: str, make_vit: Callable[..., Any], gray_images: Tensor
) -> None:
    model = make_vit(**SHAPES[case])
    student, _ = convert(model, "ssd_vit", attention_layers=[0, 1, 2])
    with torch.no_grad():
        expected = model(gray_images)
        torch.testing.assert_close(student(gray_images), expected, rtol=1e-6, atol=1e-6)


def test_plain_teacher_comes_back_bit_for_bit(make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    model = make_vit()
    student, report = convert(model, "ssd_vit", attention_layers=[0, 1, 2])
    theirs = model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in student.state_dict().items())
    assert torch.equal(student(gray_images), model(gray_images))
    assert report.covered == 1.0 and report.counts["copied"] == sum(report.counts.values()) > 0
    assert not report.dropped


@pytest.mark.parametrize("eps", [1e-12, 1e-3])
def test_hugging_face_teacher_keeps_its_norms(
    eps: float, randomise: Callable[..., None], gray_images: Tensor
) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        num_labels=4,
        layer_norm_eps=eps,
        hidden_act="relu",
    )
    model = ViTForImageClassification(config).eval()
    randomise(model)
    student, _ = convert(model, "ssd_vit", attention_layers=[0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(student(gray_images), model(gray_images).logits, rtol=1e-5, atol=1e-6)


def test_all_but_the_mixers_is_the_teacher_bit_for_bit(make_vit: Callable[..., Any]) -> None:
    model = make_vit(init_values=0.1, qk_norm=True)
    student, report = convert(model, "ssd_vit", attention_layers=[1])
    theirs, fresh = model.state_dict(), set()
    for name, tensor in student.state_dict().items():
        if name in theirs:
            assert torch.equal(tensor, theirs[name]), name
        else:
            fresh.add(name)
    mixer = ("conv1d.weight", "conv1d.bias", "gate.weight", "gate.bias", "dt_proj.weight", "dt_proj.bias")
    added = {f"blocks.{k}.attn.{name}" for k in (0, 2) for name in (*mixer, "A_log", "A_b_log")}
    assert fresh == added == {row.target for row in report.rows if row.kind == "fresh"}
    dropped = {drop.source for drop in report.dropped}
    assert dropped == {f"blocks.{k}.attention.{n}_norm" for k in (0, 2) for n in "qk"}


def test_mixer_reads_queries_keys_and_values(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    student: Any = convert(model, "ssd_vit")[0]
    u = torch.randn(2, 17, 64)
    _, parts = student.mixer(1, u, Context(), Capture(mixers={1: frozenset(("B", "C"))}))
    attention = model.blocks[1].attn
    q, k, _ = attention.qkv(model.blocks[1].norm1(u)).chunk(3, dim=-1)
    torch.testing.assert_close(parts["C"], q, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["B"], k, rtol=1e-5, atol=1e-5)
    assert student.sources(("attention", "mlp") * 3) == {0: 0, 1: 2, 2: 4}
    kept: Any = convert(model, "ssd_vit", attention_layers=[2])[0]
    assert kept.sources(("attention", "mlp") * 3) == {0: 0, 1: 2}


def test_a_folded_teacher_is_the_same_function(make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    model = make_vit(init_values=0.2)
    init = SubcloneConfig(layers="all", importance="uniform", fold=True)
    student, _ = convert(model, "ssd_vit", init=init, attention_layers=[0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(student(gray_images), model(gray_images), rtol=1e-4, atol=1e-5)


def test_distilled_teacher_gives_its_class_token(make_vit: Callable[..., Any]) -> None:
    model = make_vit(name="deit_tiny_distilled_patch16_224")
    student, report = convert(model, "ssd_vit", attention_layers=[0, 1, 2])
    state = student.state_dict()
    assert torch.equal(state["pos_embed"], model.pos_embed[:, [0, *range(2, 18)]])
    assert torch.equal(state["head.weight"], model.head.weight)
    assert {drop.source for drop in report.dropped} == {"embedding.special.dist", "head.dist"}


def test_no_embed_class_gives_the_class_token_no_position(make_vit: Callable[..., Any]) -> None:
    model = make_vit(no_embed_class=True)
    position = convert(model, "ssd_vit")[0].state_dict()["pos_embed"][0]
    assert not position[0].any() and torch.equal(position[1:], model.pos_embed[0])


def test_another_number_of_classes_leaves_the_head_fresh(make_vit: Callable[..., Any]) -> None:
    student, report = convert(make_vit(), "ssd_vit", num_classes=4)
    assert student.num_classes == 4
    assert {"head.weight", "head.bias"} <= {row.target for row in report.rows if row.kind == "fresh"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(embed_dim=32, num_heads=4), "keeps the teacher's width 64, but the student is 32 wide"),
        (dict(num_heads=2), "teacher has 4 heads, ssd_vit 2"),
        (dict(patch_size=4), "teacher has a (4, 4) patch grid, ssd_vit (2, 2)"),
        (dict(mlp_ratio=2), "mlp.fc1"),
        (dict(qkv_bias=False), "no blocks.0.attn.qkv.bias"),
        (dict(init_values=None), "no blocks.0.ls1.gamma"),
    ],
)
def test_shapes_that_cannot_meet_are_one_line(
    options: dict[str, Any], said: str, make_vit: Callable[..., Any]
) -> None:
    with pytest.raises(UserError) as error:
        convert(make_vit(init_values=0.1), "ssd_vit", **options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_class_token_the_teacher_lacks_is_one_line(make_vit: Callable[..., Any]) -> None:
    teacher = adapt_teacher(make_vit(class_token=False, global_pool="avg"))
    kwargs = {**shape_of(teacher.view), "class_token": True}
    spec = StudentSpec(view=teacher.view, preprocessing=teacher.preprocessing, num_classes=10)
    student = STUDENTS["ssd_vit"](kwargs=kwargs).build(spec)
    with pytest.raises(UserError, match="has a cls token and the teacher none"):
        subclone(student, teacher, SubcloneConfig(importance="uniform"))


def test_attention_layers_must_exist(make_vit: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"attention_layers is \[3\]; the layers are 0 to 2"):
        convert(make_vit(), "ssd_vit", attention_layers=[3])


def test_an_activation_timm_lacks_is_refused(make_vit: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="activation"):
        convert(make_vit(act_layer=nn.Tanh), "ssd_vit")


def test_branches_pass_through_layer_scale() -> None:
    """The directions' difference is written as the block's output is: through `proj`, then `ls1`."""
    model: Any = timm.create_model("ssd_vit_micro_patch2_8", depth=1, in_chans=1, init_values=0.3).eval()
    with torch.no_grad():
        model.blocks[0].ls1.gamma.uniform_(0.2, 2.0)
        model.blocks[0].attn.A_b_log.add_(1.0)
        images = torch.randn(2, 1, 8, 8)
        capture = {"image": Capture(branches=frozenset({0}))}
        forward, backward = model.run({"image": images}, capture).stream.branches[0]
        block = model.blocks[0]
        x = model._pos_embed(model.patch_embed(images))
        half = block.attn.mix(block.norm1(x), branches=True).half
        written = block.ls1(half @ block.attn.proj.weight.T)
    torch.testing.assert_close(forward - backward, 2 * written, rtol=1e-4, atol=1e-5)
    assert written.abs().max() > 1e-3
