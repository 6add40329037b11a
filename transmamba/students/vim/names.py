"""The student `vim` and the sizes of Vim that timm makes by name."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ...config.registry import STUDENTS
from ...core.preprocessing import Preprocessing
from ...core.tower import StudentSpec
from ...ecosystems.adapters import put_timm_adapter_on
from ...ecosystems.find import preprocessing_of
from ...ecosystems.timm import check_options, create_timm
from ...errors import UserError
from ...views.view import View
from ..reading import pooled_token
from ..shape_tag import told
from ..timm_arguments import ALONE, Asked, default_cfg, following, image_embedding, image_tower
from .model import VisionMamba
from .official import checkpoint_filter_fn

default_cfgs = generate_default_cfgs(
    {
        "vim_tiny_patch16_224": default_cfg(),
        "vim_small_patch16_224": default_cfg(),
        "vim_base_patch16_224": default_cfg(),
        "vim_mini_patch4_32": default_cfg(32, 10),
        "vim_micro_patch2_8": default_cfg(8, 10),
        "vim_shaped": default_cfg(),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> VisionMamba:
    out_indices = kwargs.pop("out_indices", 3)
    kwargs.pop("vim_compat_init", None)  # of students saved before 0.2; it said how they began
    model = build_model_with_cfg(
        VisionMamba,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **{**defaults, **kwargs},
    )
    model.transmamba_args = kwargs
    put_timm_adapter_on(model, pretrained)
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


@register_model
def vim_shaped(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> VisionMamba:
    """Of the shape that its tag says (`students.shape_tag`), for libraries that know a model by its name
    alone."""
    return _create("vim_shaped", pretrained, *told(pretrained_cfg, kwargs))


@STUDENTS.register("vim")
@dataclass(frozen=True, kw_only=True)
class Vim:
    """A Vim. Image size, channels, classes and pooling follow the teacher and the data.

    model: a timm name of ours; left out: the teacher's patch and width, and two layers a block
    kwargs: of its constructor; they go before all of that: embed_dim, depth, patch_size, img_size, d_state
        (16), expand (2), d_conv (4), gate_bias (false), proj_bias (false), global_pool (token, or avg),
        drop_rate (0), drop_path_rate (0)
    """

    group_names: ClassVar[tuple[str, ...]] = ("mixers", "head")

    model: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.kwargs)

    def arguments(self, spec: StudentSpec, asked: Asked = ALONE) -> dict[str, Any]:
        """Of the constructor."""
        shape_of = functools.partial(_shape_of, square="patch_size" not in self.kwargs, asked=asked)
        arguments = following("vim", self.model, self.kwargs, shape_of, spec)
        if spec.view is not None:
            arguments |= _reading_of(spec.view)
        return {**arguments, **self.kwargs}

    def build(self, spec: StudentSpec) -> nn.Module:
        arguments = self.arguments(spec)
        return create_timm(self.model or name_of_width(arguments["embed_dim"]), pretrained=False, **arguments)

    def preprocessing(self) -> Preprocessing:
        """What its images look like where no teacher says so, found out without its weights."""
        if self.model is None:
            raise UserError("student vim takes its shape from a teacher; name one, or set student.model")
        with torch.device("meta"):
            return preprocessing_of(create_timm(self.model, pretrained=False, **self.kwargs))


# the official sizes, by width
OFFICIAL = {192: "vim_tiny_patch16_224", 384: "vim_small_patch16_224", 768: "vim_base_patch16_224"}


def name_of_width(width: int) -> str:
    """The timm name that a Vim of this width goes by; its saved arguments say where it differs from that."""
    return OFFICIAL.get(width, OFFICIAL[384])


def _reading_of(view: View) -> dict[str, Any]:
    """How a Vim begins and ends as this view does: the norm after its embedding, the token that its head
    reads."""
    embedding, _ = image_embedding(view)
    mean = pooled_token(view) == "mean"
    arguments: dict[str, Any] = {"global_pool": "avg" if mean else "token"}
    if embedding.norm is not None:
        kind = "centred" if embedding.centre else "rms" if embedding.norm.rms else "layer"
        arguments |= dict(pre_norm=kind, pre_norm_eps=embedding.norm.eps)
    return arguments


def _shape_of(view: View, square: bool, asked: Asked) -> dict[str, Any]:
    """Constructor arguments of the Vim in which each of this view's sublayers has a layer of its own.

    Raises UserError for patches that are not square where they have to be.
    """
    tower = image_tower(view)
    height, width = tower.embedding.weight.shape[-2:]
    if square and height != width:
        raise UserError(
            f"the teacher's patches are {height} x {width} pixels, a Vim's are square; set "
            f"{asked.at}.kwargs.patch_size={width}"
        )
    return dict(patch_size=width, embed_dim=tower.width, depth=len(tower.sublayers))
