"""The student `vim` and the sizes of Vim that timm makes by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ..canonical import View
from ..registry import STUDENTS
from .vim_checkpoint import checkpoint_filter_fn
from .vision_mamba import VisionMamba


def _cfg(size: int = 224, **kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": None,
        "crop_pct": 0.9 if size == 224 else 1.0,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224": _cfg(),
        "vim_small_patch16_224": _cfg(),
        "vim_base_patch16_224": _cfg(),
        "vim_mini_patch4_32": _cfg(32, num_classes=10),
        "vim_micro_patch2_8": _cfg(8, num_classes=10),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> VisionMamba:
    out_indices = kwargs.pop("out_indices", 3)
    model = build_model_with_cfg(
        VisionMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **{**defaults, **kwargs},
    )
    model.transmamba_args = kwargs
    return model


@register_model
def vim_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Tiny: 24 layers of 192, 7 M parameters."""
    return _create("vim_tiny_patch16_224", pretrained, dict(embed_dim=192, depth=24), kwargs)


@register_model
def vim_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Small: 24 layers of 384, 26 M parameters."""
    return _create("vim_small_patch16_224", pretrained, dict(embed_dim=384, depth=24), kwargs)


@register_model
def vim_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Base: 24 layers of 768, 98 M parameters."""
    return _create("vim_base_patch16_224", pretrained, dict(embed_dim=768, depth=24), kwargs)


@register_model
def vim_mini_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """For 32-pixel images: 64 patches, 12 layers of 192."""
    defaults = dict(img_size=32, patch_size=4, embed_dim=192, depth=12)
    return _create("vim_mini_patch4_32", pretrained, defaults, kwargs)


@register_model
def vim_micro_patch2_8(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """For 8-pixel images: 16 patches, 12 layers of 64, state 8."""
    defaults = dict(img_size=8, patch_size=2, embed_dim=64, depth=12, d_state=8)
    return _create("vim_micro_patch2_8", pretrained, defaults, kwargs)


@STUDENTS.register("vim")
@dataclass(frozen=True, kw_only=True)
class Vim:
    """A Vim by timm name; image size, channels and classes follow the teacher and the data unless `kwargs`
    says otherwise. For its width and depth, `kwargs` takes embed_dim and depth."""

    model: str = "vim_small_patch16_224"
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(
        self, *, num_classes: int, input_size: tuple[int, int, int] | None = None, view: View | None = None
    ) -> nn.Module:
        from ..teachers.timm_vit import create_timm

        size: dict[str, Any] = dict(num_classes=num_classes)
        if input_size is not None:
            size |= dict(in_chans=input_size[0], img_size=list(input_size[1:]))
        return create_timm(self.model, pretrained=False, **{**size, **self.kwargs})
