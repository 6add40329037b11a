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
from .processor_sizes import crop_of, resized_of, sized

_OWN, NESTED = "preprocessor_config.json", "processor_config.json"
# PIL's numbers
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
# those that resize, crop, rescale and normalise as is done here, in that order
_KINDS = ("ViT", "DeiT", "Bit", "CLIP", "Siglip")
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_VALUES = ("image_mean", "image_std", "resample", "size", "crop_size", "rescale_factor", "default_to_square")
# without effect on pictures of the channels that a model takes
_NO_STEPS = ("do_convert_rgb", "do_reduce_labels")
_NO_VALUES = (
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "_processor_class",
    "_valid_processor_keys",
    "data_format",
    "input_data_format",
    "return_tensors",
    "disable_grouping",
    "device",
    "image_seq_length",
    "num_channels",
    "pad_size",
    "transformers_version",
)
# of files that `image_processor` wrote where no processor of transformers does just so; nothing to them
_CROP_MODE = "crop_mode"
# model_type -> the kind of a file that does not say
_KIND_OF = {
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "clip_vision_model": "CLIP",
    "siglip_vision_model": "Siglip",
}
# What the published checkpoints of each were trained with, for a model that comes without a processor.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5), "resample": 2},
    "deit": {
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
        "resample": 3,
        "crop_pct": 224 / 256,
    },
}
_DEFAULTS["dinov2"] = _DEFAULTS["dinov2_with_registers"] = _DEFAULTS["deit"]
_DEFAULTS["siglip_vision_model"] = {**_DEFAULTS["vit"], "resample": 3}
_DEFAULTS["clip_vision_model"] = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "resample": 3,
    "crop_pct": 1.0,
}


def hugging_face_preprocessing(
    config: Any, source: str, revision: str | None = None, *, any_size: bool = False
) -> Preprocessing:
    """Mean, std, size, crop and resampling of the image processor in `source` (a folder or an id); those of
    the model's kind without one.

    config:   the model's own
    any_size: whether the model takes pictures of the size that the processor makes, not of its own alone

    Raises UserError for a processor that cannot be read, does what a `Preprocessing` cannot say, or makes
    pictures of a size that the model does not take.
    """
    values, file = _read(source, revision or getattr(config, "_commit_hash", None))
    where = f"{source}: its {file}"
    sides = config.image_size
    own = (sides, sides) if isinstance(sides, int) else tuple(sides)
    if not values:
        return _without(config, own)
    said = {key: value for key, value in values.items() if value is not None}
    processor = {**_of_kind(said, config.model_type, where), **said}
    _refuse_other_steps(said, processor, where)
    try:
        mean, std = _scaled(processor, config.num_channels)
        size, crop_pct, crop_mode = sized(
            resized_of(processor),
            crop_of(processor) if processor.get("do_center_crop") else None,
            # what its file does not say of sizes is as the model has it
            own if not any_size and not {"size", "crop_size"} & said.keys() else None,
        )
        looks = Preprocessing.from_pretrained_cfg(
            {
                "input_size": (config.num_channels, *size),
                "mean": mean,
                "std": std,
                "interpolation": _resampling(processor.get("resample")),
                "crop_pct": crop_pct,
                "crop_mode": said.get(_CROP_MODE, crop_mode),
            }
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{where} cannot be understood: {error}") from error
    if not any_size and size != own:
        made, taken = (f"{height} x {width}" for height, width in (size, own))
        raise UserError(f"{where} makes pictures of {made} pixels, but the model takes {taken}")
    return looks


def _without(config: Any, size: tuple[int, ...]) -> Preprocessing:
    """Of a model that comes without a processor."""
    known = _DEFAULTS.get(config.model_type, _DEFAULTS["vit"])
    return Preprocessing.from_pretrained_cfg(
        {
            "input_size": (config.num_channels, *size),
            "mean": known["image_mean"],
            "std": known["image_std"],
            "interpolation": RESAMPLE[known["resample"]],
            "crop_pct": known.get("crop_pct", 1.0),
            "crop_mode": "center" if "crop_pct" in known else "squash",
        }
    )


def _of_kind(values: Mapping[str, Any], model_type: str, where: str) -> dict[str, Any]:
    """What the named kind of processor, or else that of the model, does where its file is silent."""
    import transformers

    name = values.get("image_processor_type") or values.get("feature_extractor_type")
    stem = str(name or f"{_KIND_OF.get(model_type, 'ViT')}ImageProcessor")
    stem = stem.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    kind = getattr(transformers, stem, None)
    if stem == "LlavaImageProcessor" and values.get(_CROP_MODE) == "border":
        pass  # as `image_processor` writes it
    elif not stem.startswith(tuple(f"{each}ImageProcessor" for each in _KINDS)) or kind is None:
        raise UserError(
            f"{where} is of the kind {name}; known are the image processors of {', '.join(_KINDS)}"
        )
    given = {key: getattr(kind, key, None) for key in (*_STEPS, *_VALUES)}
    return {key: value for key, value in given.items() if value is not None}


def _refuse_other_steps(values: Mapping[str, Any], processor: Mapping[str, Any], where: str) -> None:
    if processor.get("do_resize") is False:
        raise UserError(
            f"{where} says do_resize: false, but a batch needs pictures of one size; make it true (pictures "
            "of that size stay as they are)"
        )
    known = {*_STEPS, *_NO_STEPS, *_VALUES, *_NO_VALUES, _CROP_MODE}
    if values.get(_CROP_MODE) == "border":
        known |= {"do_pad"}
    others = [key for key, value in values.items() if value is not False and key not in known]
    if others:
        raise UserError(
            f"{where} says {', '.join(others)}, which is not covered; make it false or take it out"
        )


def _scaled(processor: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in 0..1, where the processor's are for pixels times its rescale_factor."""
    mean, std = (
        (each,) * channels if isinstance(each, float) else tuple(map(float, each))
        for each in (processor["image_mean"], processor["image_std"])
    )
    if processor.get("do_normalize") is False:
        mean, std = (0.0,) * channels, (1.0,) * channels
    factor = 1.0 if processor.get("do_rescale") is False else float(processor.get("rescale_factor", 1 / 255))
    whole = 255 * factor
    if abs(whole - 1) < 1e-6:
        return mean, std
    return tuple(value / whole for value in mean), tuple(value / whole for value in std)


def _resampling(code: Any) -> str:
    if code not in RESAMPLE:
        raise ValueError(f"resample {code!r} is none of {', '.join(map(str, RESAMPLE))}")
    return RESAMPLE[code]


def _read(source: str, revision: str | None) -> tuple[dict[str, Any], str]:
    """What the files of a folder or an id say of the image processor, and in which: the newer one, where it
    nests an image processor, goes before the older, as in transformers. Empty where there is none."""
    values = _values(source, NESTED, revision).get("image_processor")
    if values is None:
        return _values(source, _OWN, revision), _OWN
    if not isinstance(values, dict):
        raise UserError(f"{source}: its {NESTED} holds no image_processor but a {type(values).__name__}")
    return values, NESTED


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
    to its size, DeiT's squashes and crops it, BiT's crops its middle, LLaVA's pads it to a square.

    BiT's crop of `center` is one pixel beside timm's where the margin is 3, 7, 11 ... pixels; LLaVA's pads
    before it resizes, so that pixels at the picture's border differ from those of `border`.

    Raises UserError for an oblong picture that keeps its aspect ratio: no processor makes one.
    """
    from transformers import BitImageProcessor, DeiTImageProcessor, LlavaImageProcessor, ViTImageProcessor

    channels, height, width = preprocessing.input_size
    resample = {name: code for code, name in RESAMPLE.items()}[preprocessing.interpolation]
    values: dict[str, Any] = dict(
        image_mean=list(preprocessing.mean), image_std=list(preprocessing.std), resample=resample
    )
    size = {"height": height, "width": width}
    high, wide = (math.floor(side / preprocessing.crop_pct) for side in (height, width))
    if preprocessing.crop_mode == "squash":
        if (high, wide) == (height, width):
            return ViTImageProcessor(size=size, **values)
        return DeiTImageProcessor(size={"height": high, "width": wide}, crop_size=size, **values)
    if height != width:
        raise UserError(
            f"crop_mode {preprocessing.crop_mode} of {height} x {width} pixels: no image processor of "
            "transformers does that; take squash, or a square"
        )
    values |= dict(size={"shortest_edge": high}, do_center_crop=True, crop_size=size)
    values["do_convert_rgb"] = channels == 3
    if preprocessing.crop_mode != "center_down":
        values[_CROP_MODE] = preprocessing.crop_mode
    if preprocessing.crop_mode == "border":
        return LlavaImageProcessor(do_pad=True, **values)
    return BitImageProcessor(**values)
