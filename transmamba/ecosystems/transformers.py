"""Hugging Face transformers: how an image classifier of its is loaded, saved, and what its images look
like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..core.preprocessing import Preprocessing
from ..errors import UserError

MODEL_TYPES = ("vit", "deit")
_PROCESSOR = "preprocessor_config.json"
_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}
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


def load_hugging_face(name: str, revision: str | None = None, num_classes: int | None = None) -> nn.Module:
    """AutoModelForImageClassification of a ViT or DeiT, from safetensors only; with `num_classes` its head is
    made anew where that differs. Raises UserError in one line."""
    from transformers import (
        AutoConfig,
        AutoModelForImageClassification,
        DeiTForImageClassificationWithTeacher,
    )

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if config.model_type not in MODEL_TYPES:
            raise UserError(
                f"teacher {name!r} (model_type={config.model_type}) cannot be expressed: only ViT and DeiT "
                "classifiers are known"
            )
        # the distilled DeiT has two heads; AutoModel would drop one of them
        with_teacher = "DeiTForImageClassificationWithTeacher" in (config.architectures or [])
        loader: Any = (
            DeiTForImageClassificationWithTeacher if with_teacher else AutoModelForImageClassification
        )
        head = {} if num_classes is None else {"num_labels": num_classes, "ignore_mismatched_sizes": True}
        return loader.from_pretrained(name, revision=revision, use_safetensors=True, **head).eval()
    except UserError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"Hugging Face model {name!r} could not be loaded: {first}") from error


def hugging_face_preprocessing(config: Any, source: str, revision: str | None = None) -> Preprocessing:
    """Mean, std, size, crop and resampling of the image processor in `source` (a folder or an id); those of
    the model's kind without one. Raises UserError for a processor that cannot be read."""
    defaults = _DEFAULTS.get(config.model_type, _DEFAULTS["vit"])
    processor = _processor_config(source, revision or getattr(config, "_commit_hash", None)) or defaults
    sides = config.image_size
    height, width = (sides, sides) if isinstance(sides, int) else sides
    cropped = bool(processor.get("do_center_crop"))
    try:
        crop_pct = 1.0
        if cropped:
            crop_pct = _side(processor.get("crop_size"), height) / _side(processor.get("size"), height)
        return Preprocessing.from_pretrained_cfg(
            {
                "input_size": (config.num_channels, height, width),
                "mean": processor.get("image_mean") or defaults["image_mean"],
                "std": processor.get("image_std") or defaults["image_std"],
                "interpolation": _RESAMPLE.get(processor.get("resample", defaults["resample"]), "bilinear"),
                "crop_pct": crop_pct,
                # ViT's processor squashes the whole picture to a square; DeiT's crops its middle
                "crop_mode": "center" if cropped else "squash",
            }
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{source}: its {_PROCESSOR} cannot be understood: {error}") from error


def _side(size: Any, default: int) -> int:
    """Pixels of 256, [256, 256], {"height": 256, "width": 256} or {"shortest_edge": 256}: all are in use."""
    if isinstance(size, dict):
        return int(size.get("shortest_edge") or size.get("height") or default)
    if isinstance(size, list | tuple):
        return int(size[0]) if size else default
    return default if size is None else int(size)


def _processor_config(source: str, revision: str | None) -> dict[str, Any]:
    """preprocessor_config.json of a folder or an id; empty where there is none."""
    folder = Path(source)
    try:
        if source and folder.is_dir():
            found: str | Path | None = folder / _PROCESSOR if (folder / _PROCESSOR).is_file() else None
        elif "/" in source:
            from transformers.utils.hub import cached_file

            missing_is_fine: Any = {"_raise_exceptions_for_missing_entries": False}
            found = cached_file(source, _PROCESSOR, revision=revision, **missing_is_fine)
        else:
            found = None
        values = json.loads(Path(found).read_text(encoding="utf-8")) if found is not None else {}
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: its {_PROCESSOR} cannot be read: {first}") from error
    if not isinstance(values, dict):
        raise UserError(f"{source}: its {_PROCESSOR} holds no JSON object but a {type(values).__name__}")
    return values


def save_transformers(model: Any, folder: Path, preprocessing: Preprocessing | None = None) -> None:
    """Write the model and its image processor: `from_pretrained(FOLDER)`."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if preprocessing is not None:
        _image_processor(preprocessing).save_pretrained(folder)


def _image_processor(preprocessing: Preprocessing) -> Any:
    from transformers import ViTImageProcessor

    _, height, width = preprocessing.input_size
    resample = {"nearest": 0, "bilinear": 2, "bicubic": 3}[preprocessing.interpolation]
    return ViTImageProcessor(
        size={"height": height, "width": width},
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
        resample=resample,
    )
