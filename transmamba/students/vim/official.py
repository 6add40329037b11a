"""Official checkpoints of hustvl/Vim: read from their pickles, and made to fit a model of another size."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from ...errors import UserError

if TYPE_CHECKING:
    from .model import VisionMamba


def checkpoint_filter_fn(state_dict: dict[str, Any], model: VisionMamba) -> dict[str, Tensor]:
    """Official hustvl/Vim names are ours; this unwraps the training checkpoint and resizes positions and
    patches.

    The class token's position is split off at the middle, where it is, not at row 0 as the official script
    does.
    """
    state = dict(state_dict.get("model", state_dict))
    weight = state.get("patch_embed.proj.weight")
    if weight is not None and weight.shape[-2:] != model.patch_embed.proj.weight.shape[-2:]:
        state["patch_embed.proj.weight"] = resample_patch_embed(
            weight, list(model.patch_embed.proj.weight.shape[-2:])
        )
    position = state.get("pos_embed")
    if position is not None and position.shape != model.pos_embed.shape:
        middle = (position.shape[1] - 1) // 2
        cls_position = position[:, middle : middle + 1]
        patches = torch.cat([position[:, :middle], position[:, middle + 1 :]], dim=1)
        patches = resample_abs_pos_embed(patches, list(model.patch_embed.grid_size), num_prefix_tokens=0)
        here = model.cls_position
        state["pos_embed"] = torch.cat([patches[:, :here], cls_position, patches[:, here:]], dim=1)
    return state


def read_official_checkpoint(path: Path) -> dict[str, Any]:
    """A hustvl/Vim `.pth`. Its pickle holds an argparse.Namespace, the one class allowed beside tensors.

    Raises UserError when the file needs any other class, or holds no Vim.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"checkpoint {str(path)!r} does not exist") from None
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint {str(path)!r} is refused: {first}") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or "layers.0.mixer.A_b_log" not in state:
        raise UserError(f"checkpoint {str(path)!r} is no Vim of hustvl/Vim (it lacks layers.0.mixer.A_b_log)")
    return state
