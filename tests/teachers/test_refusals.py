"""What a view cannot express is refused by name, in one line, and never approximated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import GatedMlp, HybridEmbed, SwiGLU
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
)
from torch import nn

from transmamba import adapt_teacher
from transmamba.errors import UserError


class GatedAttention(timm.layers.Attention):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, gated=True, **kwargs)


GatedAttention.__name__ = "Attention"  # as timm's own gate, behind the plain class name

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "prr pooling": (dict(global_pool="prr"), "global_pool=prr"),
    "max pooling": (dict(global_pool="max"), "global_pool=max"),
    "avgmax pooling": (dict(global_pool="avgmax"), "global_pool=avgmax"),
    "no pooling": (dict(global_pool=""), "global_pool="),
    "pooled prefix": (dict(global_pool="avg", pool_include_prefix=True), "prefix tokens"),
    "parallel scaling": (dict(block_fn=ParallelScalingBlock), "ParallelScalingBlock"),
    "differential parallel": (dict(block_fn=DiffParallelScalingBlock), "DiffParallelScalingBlock"),
    "parallel things": (dict(block_fn=ParallelThingsBlock), "ParallelThingsBlock"),
    "post norm": (dict(block_fn=ResPostBlock), "ResPostBlock"),
    "gated MLP": (dict(mlp_layer=GatedMlp), "GatedMlp"),
    "SwiGLU with a norm": (dict(mlp_layer=SwiGLU, scale_mlp_norm=True), "SwiGLU"),
    "MLP norm": (dict(scale_mlp_norm=True), "MLP"),
    "attention norm": (dict(scale_attn_norm=True), "norm before the output projection"),
    "gated attention": (dict(attn_layer=GatedAttention), "plain softmax attention"),
    "differential attention": (dict(attn_layer="diff"), "DiffAttention"),
    "unknown norm": (dict(norm_layer="simplenorm"), "SimpleNorm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_timm_block_is_refused_by_name(case: str, make_vit: Callable[..., nn.Module]) -> None:
    options, said = REFUSED[case]
    with pytest.raises(UserError, match="cannot be expressed") as refusal:
        adapt_teacher(make_vit(**options))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_hybrid_embedding_is_refused(make_vit: Callable[..., Any]) -> None:
    model = make_vit()
    model.patch_embed = HybridEmbed(nn.Conv2d(1, 8, 1), img_size=8, in_chans=1, embed_dim=64)
    with pytest.raises(UserError, match="HybridEmbed"):
        adapt_teacher(model)


@pytest.mark.parametrize("module", [nn.Linear(2, 2), timm.create_model("resnet10t", num_classes=2)])
def test_another_family_is_refused_with_the_known_ones(module: nn.Module) -> None:
    with pytest.raises(UserError, match=r"no teacher adapter for .*VisionTransformer"):
        adapt_teacher(module)


def test_another_hugging_face_class_is_refused() -> None:
    from transmamba.teachers.hf_vit import hugging_face_view

    with pytest.raises(UserError, match="Linear cannot be expressed"):
        hugging_face_view(torch.nn.Linear(1, 1))
