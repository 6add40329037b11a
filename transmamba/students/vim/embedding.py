"""Vim's patches, which may overlap, its positions at another resolution, and the norm behind both."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from torch import Tensor, nn

from ..sizes import pair


class OverlappingPatches(PatchEmbed):
    """Patches that begin every `stride` pixels, as in the official stride-8 models; the last one ends within
    the image."""

    def __init__(self, img_size: Any, patch_size: Any, in_chans: int, embed_dim: int, stride: int) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim)
        self.stride = (stride, stride)
        self.proj.stride = self.stride
        self.img_size, self.grid_size, self.num_patches = self._init_img_size(img_size)

    def _init_img_size(self, img_size: Any) -> tuple[Any, Any, Any]:
        size, grid, count = super()._init_img_size(img_size)
        if hasattr(self, "stride"):
            grid = self.dynamic_feat_size(size)
            count = grid[0] * grid[1]
        return size, grid, count

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        super().set_input_size(img_size, patch_size)
        self.proj.stride = self.stride

    def feat_ratio(self, as_scalar: bool = True) -> Any:
        return max(self.stride) if as_scalar else self.stride

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        rows, columns = (
            max(0, (side - patch) // step + 1)
            for side, patch, step in zip(img_size, self.patch_size, self.stride, strict=True)
        )
        return rows, columns


def patches_of(
    img_size: Any, patch_size: Any, in_chans: int, embed_dim: int, stride: int | None
) -> PatchEmbed:
    """timm's patch embedding; an overlapping one where `stride` is smaller than a patch."""
    if stride is None or (stride, stride) == pair(patch_size):
        return PatchEmbed(img_size, patch_size, in_chans, embed_dim)
    return OverlappingPatches(img_size, patch_size, in_chans, embed_dim, stride)


def norm_after(kind: str, dim: int, eps: float) -> nn.Module:
    """The norm after the embedding. Raises ValueError for an unknown kind."""
    if kind not in ("", "layer", "centred", "rms"):
        raise ValueError(f"pre_norm is {kind!r}; write 'layer', 'centred', 'rms' or ''")
    norm = nn.RMSNorm if kind == "rms" else nn.LayerNorm
    return norm(dim, eps=eps) if kind else nn.Identity()


@torch.no_grad()
def resized_positions(position: Tensor, old: tuple[int, int] | None, new: tuple[int, int]) -> Tensor:
    """Positions (1, N + 1, D) of a grid `old` (None: a square one) at a grid `new`, the class token's own in
    the middle of both. Raises ValueError for positions of no square grid."""
    count = position.shape[1] - 1
    if old is None:
        old = (math.isqrt(count),) * 2
    if old[0] * old[1] != count:
        raise ValueError(f"its {count} positions are those of no square grid, so they cannot be resized")
    here, there = count // 2, new[0] * new[1] // 2
    cls_position = position[:, here : here + 1]
    patches = torch.cat([position[:, :here], position[:, here + 1 :]], dim=1)
    patches = resample_abs_pos_embed(patches, list(new), list(old), num_prefix_tokens=0)
    return torch.cat([patches[:, :there], cls_position, patches[:, there:]], dim=1)


def note_sizes(model: Any, img_size: Any, patch_size: Any) -> None:
    """Keep what rebuilds a model in step with it: our record, and timm's own where it keeps one."""
    sizes = {"img_size": img_size, "patch_size": patch_size}
    model.transmamba_args = {**(getattr(model, "transmamba_args", None) or {}), **sizes}
    try:
        from timm.models._input import update_model_input_size
    except ImportError:  # before timm 1.0.31
        return
    update_model_input_size(model, img_size, patch_size=patch_size)
