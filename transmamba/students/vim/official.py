"""Official checkpoints of hustvl/Vim: read from their pickles, and made to fit a model of another size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.layers import resample_patch_embed
from torch import Tensor

from ...ecosystems.weights import read_checkpoint, read_weights
from ...errors import UserError
from .embedding import resized_positions

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
        state["pos_embed"] = resized_positions(position, None, model.patch_embed.grid_size)
    return state


def read_official_checkpoint(path: Path) -> dict[str, Any]:
    """A hustvl/Vim `.pth`. Its pickle holds an argparse.Namespace, the one class allowed beside tensors.

    Raises UserError when the file needs any other class, or holds no Vim.
    """
    return read_official(path)[0]


def read_official(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The same, and the arguments that it was trained with, where the file holds them."""
    state = read_weights(path)
    if "layers.0.mixer.A_b_log" not in state:
        raise UserError(f"checkpoint {str(path)!r} is no Vim of hustvl/Vim (it lacks layers.0.mixer.A_b_log)")
    whole = read_checkpoint(path)
    args = whole.get("args")
    return state, vars(args) if hasattr(args, "__dict__") else {}


def shape_of_official(
    path: Path, state: Mapping[str, Tensor], args: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Constructor arguments of the model that has the checkpoint's own patches and positions: those in which
    it is no Vim of 224 pixels in patches of 16 side by side.

    options: of the user, which go before; who gives a size wants positions at that size

    Raises UserError where the number of positions follows from no distance between patches.
    """
    weight, position = state.get("patch_embed.proj.weight"), state.get("pos_embed")
    if weight is None or position is None:
        return {}
    patch, count = int(weight.shape[-1]), position.shape[1] - 1
    size, side = int(args.get("input_size") or 224), math.isqrt(count)
    stride, left = divmod(size - patch, side - 1) if side > 1 else (patch, 0)
    if side * side == count and not left and 1 <= stride <= patch:
        found = {"patch_size": (patch, 16), "img_size": (size, 224), "stride": (stride, patch)}
        return {name: value for name, (value, usual) in found.items() if value != usual}
    if options.keys() & {"img_size", "stride"}:
        return {}
    raise UserError(
        f"{path} has {count} positions, which {size}-pixel images in patches of {patch} do not give; write "
        f"img_size=PIXELS of what it was trained on (and stride=PIXELS where its patches overlap)"
    )
