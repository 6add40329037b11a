"""Image towers of ours inside a LLaVA of transformers, which has them by their timm names: `llava_vim` and
`llava_ssd_vit`.

They give their intermediates as (B, N, D) where nothing else is asked, for transformers' TimmWrapperModel
asks for nothing and LLaVA's connector reads them so; and they have no norm at the end, which nobody reads.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..ssd_vit.model import SSDVisionTransformer
from ..timm_arguments import default_cfg
from ..vim.model import VisionMamba

default_cfgs = generate_default_cfgs({"llava_vim": default_cfg(), "llava_ssd_vit": default_cfg()})

# kind in a recipe -> timm's name
NAMES = {"vim": "llava_vim", "ssd_vit": "llava_ssd_vit"}


class ScannedVim(VisionMamba):
    """A Vim read by a connector."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.norm_f: nn.Module = nn.Identity()  # type: ignore[assignment]

    def forward_intermediates(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        return super().forward_intermediates(x, *arguments, **{"output_fmt": "NLC", **options})


class ScannedViT(SSDVisionTransformer):
    """An ssd_vit read by a connector."""

    def forward_intermediates(self, x: Tensor, *arguments: Any, **options: Any) -> Any:
        return super().forward_intermediates(x, *arguments, **{"output_fmt": "NLC", **options})


@register_model
def llava_vim(pretrained: bool = False, **kwargs: Any) -> ScannedVim:
    """A Vim of any shape."""
    return _create(ScannedVim, "llava_vim", pretrained, kwargs)


@register_model
def llava_ssd_vit(pretrained: bool = False, **kwargs: Any) -> ScannedViT:
    """An ssd_vit of any shape."""
    return _create(ScannedViT, "llava_ssd_vit", pretrained, kwargs)


def _create(kind: Any, name: str, pretrained: bool, kwargs: dict[str, Any]) -> Any:
    out_indices = kwargs.pop("out_indices", 3)
    feature_cfg = dict(out_indices=out_indices, feature_cls="getter")
    return build_model_with_cfg(kind, name, pretrained, feature_cfg=feature_cfg, **kwargs)
