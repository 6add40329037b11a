"""What the images of an open_clip model look like: its preprocess_cfg and our `Preprocessing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.preprocessing import Preprocessing
from ..errors import UserError

_RESIZE_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}
_INTERPOLATIONS = ("bicubic", "bilinear")


def looks_of(model: Any) -> Preprocessing:
    """What open_clip.image_transform does for its preprocess_cfg. Raises UserError for what a `Preprocessing`
    cannot say."""
    import open_clip

    config = {
        **vars(open_clip.transform.PreprocessCfg()),
        "size": getattr(model.visual, "image_size", 224),
        **getattr(model.visual, "preprocess_cfg", {}),
    }
    try:
        return _preprocessing(config)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"open_clip's preprocess_cfg cannot be expressed: {error}") from error


def _preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    size, mode = config["size"], config["resize_mode"] or "shortest"
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    mean, std = (tuple(_channels(config[name])) for name in ("mean", "std"))
    interpolation = config["interpolation"] or "bicubic"
    if interpolation not in (*_INTERPOLATIONS, "random"):
        raise ValueError(f"interpolation {interpolation!r} is none of bicubic, bilinear")
    if mode not in _RESIZE_MODES:
        raise ValueError(f"resize_mode {mode!r} is none of {', '.join(_RESIZE_MODES)}")
    fill = config["fill_color"]
    if mode == "longest" and any(round(255 * value) != fill for value in mean):
        raise ValueError(f"resize_mode longest with fill_color {fill}: only the mean is filled in")
    # open_clip's transform takes no other for a short side that is not one of a square
    always_bicubic = interpolation == "random" or (mode == "shortest" and height != width)
    return Preprocessing(
        (3, height, width),
        mean,
        std,
        "bicubic" if always_bicubic else interpolation,
        1.0,
        _RESIZE_MODES[mode],
    )


def _channels(values: Any) -> list[float]:
    return [float(value) for value in (values if isinstance(values, list | tuple) else [values] * 3)]


def preprocess_cfg(preprocessing: Preprocessing) -> dict[str, Any]:
    """A preprocess_cfg of open_clip's. Raises UserError for a crop, a border or an interpolation that it does
    not know."""
    # its centre crop rounds an odd margin as timm's does
    mode = "center" if preprocessing.crop_mode == "center_down" else preprocessing.crop_mode
    fills = {round(255 * value) for value in preprocessing.mean}
    for name, wrong in {
        "crop_pct": preprocessing.crop_pct != 1,
        "interpolation": preprocessing.interpolation not in _INTERPOLATIONS,
        "crop_mode": mode == "border" and len(fills) > 1,
    }.items():
        if wrong:
            raise UserError(f"open_clip cannot say {name}={getattr(preprocessing, name)!r}")
    return {
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "interpolation": preprocessing.interpolation,
        "resize_mode": {ours: theirs for theirs, ours in _RESIZE_MODES.items()}[mode],
        **({"fill_color": fills.pop()} if mode == "border" else {}),
    }
