"""timm's vision transformers with every option that the canonical view knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TIMM: dict[str, dict[str, Any]] = {
    "cls": {},
    "avg": dict(global_pool="avg"),
    "avg_norm_first": dict(global_pool="avg", fc_norm=False),
    "no_cls": dict(global_pool="avg", class_token=False),
    "cls_fc_norm": dict(fc_norm=True),
    "layer_scale": dict(init_values=0.1),
    "registers": dict(reg_tokens=4),
    "registers_avg": dict(reg_tokens=2, global_pool="avg", class_token=False),
    "deit3": dict(no_embed_class=True, init_values=1e-5),
    "deit3_registers": dict(no_embed_class=True, reg_tokens=2),
    "qk_norm": dict(qk_norm=True),
    "pre_norm": dict(pre_norm=True),
    "no_qkv_bias": dict(qkv_bias=False),
    "no_proj_bias": dict(proj_bias=False),
    "rms_norm": dict(norm_layer="rmsnorm"),
    "quick_gelu": dict(act_layer="quick_gelu"),
    "no_positions": dict(pos_embed="none"),
    "no_final_norm": dict(final_norm=False),
    "oblong": dict(img_size=(8, 12)),
    "dynamic": dict(dynamic_img_size=True),
    "drop_rates": dict(drop_rate=0.5, drop_path_rate=0.5, attn_drop_rate=0.5, patch_drop_rate=0.5),
    "distilled": dict(name="deit_tiny_distilled_patch16_224"),
    "deit": dict(name="deit_tiny_patch16_224"),
}


def images_for(options: dict[str, Any]) -> Tensor:
    height, width = options.get("img_size", (8, 8))
    return torch.randn(3, 1, height, width, generator=torch.Generator().manual_seed(1))
