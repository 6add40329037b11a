"""The student `ssd_vit`, its shape from a teacher's, and the sizes of it that timm makes by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ...config.registry import STUDENTS
from ...core.preprocessing import Preprocessing
from ...core.tower import StudentSpec
from ...ecosystems.adapters import put_timm_adapter_on
from ...ecosystems.find import preprocessing_of
from ...ecosystems.timm import check_options, create_timm
from ...errors import UserError
from ...views.heads import AttentionPool, Classifier, Embedder, Head
from ...views.placed import skeletons
from ...views.sublayers import Attention, Mlp
from ...views.view import View
from ..reading import activation_name, pool_of, pooled_token
from ..shape_tag import told
from ..timm_arguments import default_cfg, following, image_embedding, image_tower
from .model import SSDVisionTransformer

default_cfgs = generate_default_cfgs(
    {
        f"ssd_{name}": default_cfg(size, classes)
        for name, size, classes in (
            ("vit_tiny_patch16_224", 224, 1000),
            ("vit_small_patch16_224", 224, 1000),
            ("vit_base_patch16_224", 224, 1000),
            ("vit_mini_patch4_32", 32, 10),
            ("vit_micro_patch2_8", 8, 10),
            ("vit_shaped", 224, 1000),
        )
    }
)


def _create(
    variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]
) -> SSDVisionTransformer:
    out_indices = kwargs.pop("out_indices", 3)
    model = build_model_with_cfg(
        SSDVisionTransformer,
        variant,
        pretrained,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **{**defaults, **kwargs},
    )
    model.transmamba_args = kwargs
    put_timm_adapter_on(model, pretrained)
    return model


@register_model
def ssd_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """The shape of ViT/DeiT-Tiny."""
    defaults = dict(patch_size=16, embed_dim=192, depth=12, num_heads=3)
    return _create("ssd_vit_tiny_patch16_224", pretrained, defaults, kwargs)


@register_model
def ssd_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """The shape of ViT/DeiT-Small."""
    defaults = dict(patch_size=16, embed_dim=384, depth=12, num_heads=6)
    return _create("ssd_vit_small_patch16_224", pretrained, defaults, kwargs)


@register_model
def ssd_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """The shape of ViT/DeiT-Base."""
    defaults = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)
    return _create("ssd_vit_base_patch16_224", pretrained, defaults, kwargs)


@register_model
def ssd_vit_mini_patch4_32(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """For 32-pixel images: 64 patches, 6 blocks of 192, 3 heads."""
    defaults = dict(img_size=32, patch_size=4, embed_dim=192, depth=6, num_heads=3)
    return _create("ssd_vit_mini_patch4_32", pretrained, defaults, kwargs)


@register_model
def ssd_vit_micro_patch2_8(pretrained: bool = False, **kwargs: Any) -> SSDVisionTransformer:
    """For 8-pixel images: 16 patches, 6 blocks of 64, 4 heads."""
    defaults = dict(img_size=8, patch_size=2, embed_dim=64, depth=6, num_heads=4)
    return _create("ssd_vit_micro_patch2_8", pretrained, defaults, kwargs)


@register_model
def ssd_vit_shaped(
    pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any
) -> SSDVisionTransformer:
    """Of the shape that its tag says (`students.shape_tag`), for libraries that know a model by its name
    alone."""
    return _create("ssd_vit_shaped", pretrained, *told(pretrained_cfg, kwargs))


@STUDENTS.register("ssd_vit")
@dataclass(frozen=True, kw_only=True)
class SsdVit:
    """An ssd_vit.

    model: a timm name of ours; left out: the teacher's shape
    attention_layers: blocks that keep attention, counted from 0
    kwargs: of its constructor; they go before all of that
    """

    group_names: ClassVar[tuple[str, ...]] = ("mixers", "head")

    model: str | None = None
    attention_layers: tuple[int, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.kwargs)

    def arguments(self, spec: StudentSpec) -> dict[str, Any]:
        """Of the constructor."""
        arguments = following("ssd_vit", self.model, self.kwargs, shape_of, spec)
        if self.attention_layers:
            arguments["attention_layers"] = list(self.attention_layers)
        return {**arguments, **self.kwargs}

    def build(self, spec: StudentSpec) -> nn.Module:
        name = self.model or "ssd_vit_small_patch16_224"
        return create_timm(name, pretrained=False, **self.arguments(spec))

    def preprocessing(self) -> Preprocessing:
        """What its images look like where no teacher says so, found out without its weights."""
        if self.model is None:
            raise UserError("student ssd_vit takes its shape from a teacher; name one, or set student.model")
        with torch.device("meta"):
            return preprocessing_of(create_timm(self.model, pretrained=False, **self.kwargs))


def shape_of(view: View) -> dict[str, Any]:
    """Constructor arguments of the vision transformer that has this view's shape."""
    tower, head = image_tower(view), view.heads.get("image")
    embedding, layout = image_embedding(view)
    special = [name for name, _ in layout.special]
    if len(tower.sublayers) < 2:
        raise UserError("this teacher has no block, of which an ssd_vit is made")
    attention, mlp = tower.sublayers[0], tower.sublayers[1]
    assert isinstance(attention, Attention) and isinstance(mlp, Mlp), "a vision transformer's block"
    eps = {sublayer.norm.eps for sublayer in skeletons(tower.sublayers) if isinstance(sublayer, Attention)}
    pool = pool_of(view)
    mapped = isinstance(pool, AttentionPool) and is_like(pool, attention, mlp)
    token = "token" if pooled_token(view) == "cls" else "avg"
    more: dict[str, Any] = {} if mlp.gate is None else dict(gated_mlp=True)
    if embedding.patch_norm is not None:
        more["embed_norm_layer"] = "rmsnorm" if embedding.patch_norm.rms else "layernorm"
    if isinstance(pool, AttentionPool) and mapped and pool.special:
        more["pool_include_prefix"] = True
    return dict(
        patch_size=embedding.weight.shape[-1],
        embed_dim=tower.width,
        depth=len(tower.ends),
        num_heads=attention.heads,
        mlp_ratio=_ratio(mlp.up.weight.shape[0], tower.width),
        qkv_bias=attention.q.bias is not None,
        qk_norm=attention.q_norm is not None,
        proj_bias=attention.o.bias is not None,
        class_token="cls" in special,
        reg_tokens=sum(name.startswith("reg") for name in special),
        global_pool="map" if mapped else token,
        pre_norm=embedding.norm is not None,
        final_norm=tower.norm is not None or _norm_after_pooling(head),
        fc_norm=_norm_after_pooling(head),
        init_values=1.0 if attention.scale is not None else None,
        act_layer=_activation(mlp.act),
        norm_layer="rmsnorm" if attention.norm.rms else None,
        norm_eps=None if eps == {1e-6} else eps.pop(),
        **more,
    )


def is_like(pool: AttentionPool, attention: Attention, mlp: Mlp) -> bool:
    """Whether timm's attention pool beside such blocks can be this one: heads, widths, biases, norm and
    activation follow from theirs."""
    width, neurons = attention.q.weight.shape[1], mlp.up.weight.shape[0]
    linears = (pool.q, pool.k, pool.v, pool.o, pool.up, pool.down)
    shapes = [(width, width)] * 4 + [(neurons, width), (width, neurons)]
    norm = pool.norm
    return (
        pool.heads == attention.heads
        and pool.latent.shape == (1, width)
        and [tuple(linear.weight.shape) for linear in linears] == shapes
        and all(linear.bias is not None for linear in linears)
        and norm is not None
        and (norm.rms, norm.eps) == (attention.norm.rms, attention.norm.eps)
        and pool.q_norm is pool.k_norm is None
        and _activation(pool.act) == _activation(mlp.act)
    )


def _ratio(neurons: int, width: int) -> float:
    """The ratio of which timm, which rounds down, makes just so many."""
    ratio = neurons / width
    while int(width * ratio) < neurons:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _norm_after_pooling(head: Head | None) -> bool:
    return isinstance(head, Classifier | Embedder) and head.norm is not None


def _activation(act: Callable[[Tensor], Tensor]) -> str | None:
    """timm's name of it; None for GELU, timm's default."""
    name = activation_name(act, "ssd_vit")
    return None if name == "gelu" else name
