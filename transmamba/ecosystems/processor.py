"""A Hugging Face image processor as a `Preprocessing`: what it does is done, or refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.preprocessing import Preprocessing
from ..errors import UserError
from . import hub

_OWN, _NESTED = "preprocessor_config.json", "processor_config.json"
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
# those that resize, crop, rescale and normalise as is done here
_KINDS = ("ViT", "DeiT", "Bit", "CLIP", "Siglip")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
# without effect on pictures of the channels that a model takes
_NO_STEPS = ("do_convert_rgb", "do_reduce_labels")
# What the published checkpoints of each were trained with, for a model that comes without a processor.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5), "resample": 2},
    "deit": {
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
        "resample": 3,
        "do_center_crop": True,
        "size": 256,
        "crop_size": 224,
    },
}
_DEFAULTS["dinov2"] = _DEFAULTS["deit"]
_DEFAULTS["siglip_vision_model"] = {**_DEFAULTS["vit"], "resample": 3}
_DEFAULTS["clip_vision_model"] = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "resample": 3,
    "do_center_crop": True,
}


def hugging_face_preprocessing(
    config: Any, source: str, revision: str | None = None, *, any_size: bool = False
) -> Preprocessing:
    """Mean, std, size, crop and resampling of the image processor in `source` (a folder or an id); those of
    the model's kind without one.

    config:   the model's own
    any_size: whether the model takes pictures of the size that the processor makes, not of its own alone

    Raises UserError for a processor that cannot be read or does what a `Preprocessing` cannot say.
    """
    defaults = _DEFAULTS.get(config.model_type, _DEFAULTS["vit"])
    values, file = _read(source, revision or getattr(config, "_commit_hash", None))
    where = f"{source}: its {file}"
    processor: Mapping[str, Any] = {**_of_kind(values, defaults, where), **values} if values else defaults
    _refuse_other_steps(processor, where)
    sides = config.image_size
    try:
        height, width = (sides, sides) if isinstance(sides, int) else sides
        cropped = bool(processor.get("do_center_crop"))
        if any_size and values:
            height = width = _side(processor.get("crop_size" if cropped else "size"), height)
        crop_pct = 1.0
        if cropped:
            crop_pct = _share(_side(processor.get("crop_size"), height), _side(processor.get("size"), height))
        mean, std = _scaled(processor, defaults, config.num_channels)
        return Preprocessing.from_pretrained_cfg(
            {
                "input_size": (config.num_channels, height, width),
                "mean": mean,
                "std": std,
                "interpolation": _resampling(processor.get("resample", defaults["resample"])),
                "crop_pct": crop_pct,
                # ViT's processor squashes the whole picture to a square; DeiT's crops its middle
                "crop_mode": "center" if cropped else "squash",
            }
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where} cannot be understood: {error}") from error


def _of_kind(values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the named kind of processor does where its file is silent."""
    import transformers

    name = values.get("image_processor_type") or values.get("feature_extractor_type")
    if name is None:
        return {key: defaults[key] for key in ("image_mean", "image_std", "resample")}
    stem = str(name).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    kind = getattr(transformers, stem, None)
    if not stem.startswith(tuple(f"{each}ImageProcessor" for each in _KINDS)) or kind is None:
        raise UserError(
            f"{where} is of the kind {name}; known are the image processors of {', '.join(_KINDS)}"
        )
    keys = (*_STEPS, "image_mean", "image_std", "resample", "size", "crop_size", "rescale_factor")
    given = {key: getattr(kind, key, None) for key in keys}
    return {key: value for key, value in given.items() if value is not None}


def _refuse_other_steps(processor: Mapping[str, Any], where: str) -> None:
    if processor.get("do_resize") is False:
        raise UserError(
            f"{where} says do_resize: false, but a batch needs pictures of one size; make it true (pictures "
            "of that size stay as they are)"
        )
    others = [
        key
        for key, value in processor.items()
        if key.startswith("do_") and value and key not in (*_STEPS, *_NO_STEPS)
    ]
    others += [key for key in ("offset", "rescale_offset", "crop_pct") if processor.get(key)]
    if others:
        raise UserError(f"{where} says {', '.join(others)}, which is not covered; make it false")


def _scaled(
    processor: Mapping[str, Any], defaults: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in 0..1, where the processor's are for pixels times its rescale_factor."""
    mean = processor.get("image_mean") or defaults["image_mean"]
    std = processor.get("image_std") or defaults["image_std"]
    mean, std = (tuple([each] * channels if isinstance(each, float) else each) for each in (mean, std))
    if processor.get("do_normalize") is False:
        mean, std = (0.0,) * channels, (1.0,) * channels
    factor = 1.0 if processor.get("do_rescale") is False else float(processor.get("rescale_factor", 1 / 255))
    whole = 255 * factor
    if abs(whole - 1) < 1e-6:
        return mean, std
    return tuple(value / whole for value in mean), tuple(value / whole for value in std)


def _share(crop: int, resized: int) -> float:
    """The crop_pct by which timm, which rounds down, resizes to just so many pixels before it crops."""
    share = crop / resized
    while math.floor(crop / share) < resized:
        share = math.nextafter(share, 0)
    return share


def _resampling(code: Any) -> str:
    if code not in _RESAMPLE:
        raise ValueError(f"resample {code!r} is none of {', '.join(map(str, _RESAMPLE))}")
    return _RESAMPLE[code]


def _side(size: Any, default: int) -> int:
    """Pixels of 256, [256, 256], {"height": 256, "width": 256} or {"shortest_edge": 256}: all are in use."""
    if isinstance(size, Mapping):
        return int(size.get("shortest_edge") or size.get("height") or default)
    if isinstance(size, list | tuple):
        return int(size[0]) if size else default
    return default if size is None else int(size)


def _read(source: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """What the files of a folder or an id say of the image processor, and in which: the newer one, where it
    nests an image processor, goes before the older, as in transformers. Empty where there is none."""
    values = _values(source, _NESTED, revision).get("image_processor")
    if values is None:
        return _values(source, _OWN, revision), _OWN
    if not isinstance(values, dict):
        raise UserError(f"{source}: its {_NESTED} holds no image_processor but a {type(values).__name__}")
    return values, _NESTED


def _values(source: str, file: str, revision: str | None) -> dict[str, Any]:
    try:
        found = _find(source, file, revision)
        values = json.loads(Path(found).read_text(encoding="utf-8")) if found is not None else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: its {file} cannot be read: {hub.explain(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{source}: its {file} holds no JSON object but a {type(values).__name__}")
    return values


def _find(source: str, file: str, revision: str | None) -> str | Path | None:
    folder = Path(source)
    if source and folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    if "/" not in source:
        return None
    from transformers.utils.hub import cached_file

    missing_is_fine: Any = {"_raise_exceptions_for_missing_entries": False}
    with hub.without_waiting():
        return cached_file(source, file, revision=revision, **missing_is_fine)


def image_processor(preprocessing: Preprocessing) -> Any:
    """The image processor that a model saved with this preprocessing brings along: ViT's squashes the picture
    to a square, BiT's crops its middle. Neither pads, so `border` is written as the crop."""
    from transformers import BitImageProcessor, ViTImageProcessor

    channels, height, width = preprocessing.input_size
    resample = {name: code for code, name in _RESAMPLE.items()}[preprocessing.interpolation]
    values = dict(image_mean=list(preprocessing.mean), image_std=list(preprocessing.std), resample=resample)
    size = {"height": height, "width": width}
    if preprocessing.crop_mode == "squash":
        return ViTImageProcessor(size=size, **values)
    return BitImageProcessor(
        size={"shortest_edge": math.floor(height / preprocessing.crop_pct)},
        do_center_crop=True,
        crop_size=size,
        do_convert_rgb=channels == 3,
        **values,
    )
