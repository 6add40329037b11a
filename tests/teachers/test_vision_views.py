"""Vision teachers against their own code: the logits, or the last stream, and every residual stream."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from measured import assert_exact
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from torch import Tensor

from transmamba import UserError, adapt_teacher, load_teacher
from transmamba.views.heads import AttentionPool
from transmamba.views.sublayers import Mlp

TIMM: dict[str, dict[str, Any]] = {
    "map": dict(global_pool="map", class_token=False),
    "map over patches": dict(global_pool="map", reg_tokens=2),
    "map over all": dict(global_pool="map", reg_tokens=1, pool_include_prefix=True),
    "map, norm after it": dict(global_pool="map", class_token=False, fc_norm=True),
    "map, rms": dict(global_pool="map", class_token=False, norm_layer="rmsnorm"),
    "SwiGLU": dict(mlp_layer=SwiGLU, act_layer="silu"),
    "SwiGLU, no bias": dict(mlp_layer=SwiGLU, act_layer="silu", proj_bias=False, norm_layer="rmsnorm"),
    "SwiGLU packed": dict(mlp_layer=SwiGLUPacked, act_layer="silu", init_values=0.1, no_embed_class=True),
    "GLU": dict(mlp_layer=GluMlp),
    "GLU, gate first": dict(mlp_layer=partial(GluMlp, gate_last=False)),
    "CLIP": dict(pre_norm=True, act_layer="quick_gelu"),
    "registers": dict(reg_tokens=3, no_embed_class=True, qk_norm=True),
    "AIMv2": dict(
        **dict(mlp_layer=SwiGLU, act_layer="silu", norm_layer="rmsnorm", embed_norm_layer="rmsnorm"),
        **dict(qkv_bias=False, proj_bias=False, class_token=False, global_pool="avg", fc_norm=False),
    ),
    "norm of the patches": dict(embed_norm_layer="layernorm", reg_tokens=1),
    "distilled": dict(name="deit_tiny_distilled_patch16_224"),
    "features": dict(num_classes=0, global_pool="map", class_token=False),
}


@pytest.mark.parametrize("case", TIMM)
def test_a_timm_teacher_is_exact(case: str, make_vit: Callable[..., Any]) -> None:
    assert_exact(make_vit(**TIMM[case]), "timm_vit", blocks=3)


def test_a_pool_of_the_patches_reads_no_special_token(make_vit: Callable[..., Any]) -> None:
    for everything in (False, True):
        head = adapt_teacher(make_vit(global_pool="map", pool_include_prefix=everything)).view.heads["image"]
        how = head.readouts[0][0]
        assert isinstance(how, AttentionPool) and how.special is everything and how.heads == 4


def small(kind: str, randomise: Callable[..., None], **options: Any) -> Any:
    family = kind.replace("ForImageClassification", "").removesuffix("WithTeacher").removesuffix("Model")
    sizes = dict(image_size=8, patch_size=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config = getattr(transformers, f"{family}Config")(**{**sizes, "num_labels": 3, **options})
    model = getattr(transformers, kind)(config).eval()
    randomise(model)
    return model


HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", {}),
    "vit, features": ("ViTModel", dict(qkv_bias=False)),
    "deit": ("DeiTForImageClassification", {}),
    "deit, two heads": ("DeiTForImageClassificationWithTeacher", {}),
    "dinov2": ("Dinov2ForImageClassification", {}),
    "dinov2, SwiGLU": ("Dinov2ForImageClassification", dict(use_swiglu_ffn=True)),
    "dinov2, SwiGLU, features": ("Dinov2Model", dict(use_swiglu_ffn=True)),
    "registers": ("Dinov2WithRegistersForImageClassification", dict(num_register_tokens=3)),
    "registers, SwiGLU, features": ("Dinov2WithRegistersModel", dict(use_swiglu_ffn=True)),
}


@pytest.mark.parametrize("case", HUGGING_FACE)
def test_a_hugging_face_teacher_is_exact(case: str, randomise: Callable[..., None]) -> None:
    kind, options = HUGGING_FACE[case]
    teacher = assert_exact(small(kind, randomise, **options), "hf_vit", blocks=2)
    gated = [s for s in teacher.view.towers["image"].sublayers if isinstance(s, Mlp) and s.gate is not None]
    assert len(gated) == 2 * ("SwiGLU" in case)


def test_dinov2_with_registers_of_another_size(randomise: Callable[..., None], tmp_path: Path) -> None:
    """Its own code resizes the positions of the patches; registers have none."""
    model = small("Dinov2WithRegistersForImageClassification", randomise, image_size=14)
    model.save_pretrained(tmp_path)
    processor = transformers.BitImageProcessor(size={"shortest_edge": 12}, crop_size=8, do_center_crop=True)
    processor.save_pretrained(tmp_path)
    teacher, images = load_teacher(tmp_path), torch.randn(2, 3, 8, 8)
    layout = teacher.view.towers["image"].layout
    assert layout.grid == (4, 4) and [name for name, _ in layout.special] == [
        "cls",
        *(f"reg{i}" for i in range(4)),
    ]
    made = teacher(images).logits
    assert made is not None
    with torch.no_grad():
        torch.testing.assert_close(made(), model(images).logits, rtol=1e-5, atol=1e-5)


def test_a_missing_head_is_said_and_never_random(
    randomise: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small("Dinov2WithRegistersModel", randomise).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="transmamba.teacher"):
        teacher = load_teacher(tmp_path)
    assert teacher.num_classes is None and "has no trained classifier" in caplog.text
    assert len(caplog.records) == 1 and "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("eva02_tiny_patch14_224", "Eva.*rotary positions in two dimensions"),
        ("vit_small_patch16_dinov3", "Eva.*rotary positions in two dimensions"),
        ("beit_base_patch16_224", "Beit.*relative position biases"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos.*relative position biases"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer.*shifted windows"),
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock"),
        ("naflexvit_base_patch16_gap", "NaFlexVit"),
    ],
)
def test_other_timm_families_are_refused_before_their_weights_are_made(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_teacher(name)
    assert "\n" not in str(caught.value) and "cannot be expressed" in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("beit", "relative position biases"),
        ("swin", "shifted windows"),
        ("dinov3_vit", "rotary positions in two dimensions"),
        ("vit_mae", "vit_base_patch16_224.mae"),
        ("vit_msn", "only ViT, DeiT and DINOv2"),
    ],
)
def test_other_hugging_face_families_are_refused_by_name(model_type: str, said: str, tmp_path: Path) -> None:
    transformers.AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=rf"model_type={model_type}\) cannot be expressed: .*{said}"
    ) as caught:
        load_teacher(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "case", ["map", "map over patches", "SwiGLU packed", "GLU", "AIMv2", "norm of the patches"]
)
def test_folding_keeps_the_function(case: str, make_vit: Callable[..., Any], gray_images: Tensor) -> None:
    teacher = adapt_teacher(make_vit(**TIMM[case]).double())
    plain, folded = (each(gray_images.double()).logits for each in (teacher, teacher.fold()))
    assert plain is not None and folded is not None
    torch.testing.assert_close(folded(), plain(), rtol=1e-5, atol=1e-5)
