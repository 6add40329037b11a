"""timm: how a model of its is made, read, saved, and what its images look like."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..core.preprocessing import Preprocessing
from ..errors import UserError, suggest
from .folders import model_folder, read_model_config

# what timm gives a model's constructor beside the arguments that rebuild it
_NOT_SAVED = frozenset(
    [
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "cache_dir",
        "features_only",
        "device",
        "dtype",
    ]
)


def timm_preprocessing(model: Any) -> dict[str, Any]:
    """The model's pretrained_cfg with the input size it was really built for."""
    config = dict(model.pretrained_cfg)
    patch_embed = getattr(model, "patch_embed", None)
    if patch_embed is not None and getattr(patch_embed, "img_size", None):
        size = tuple(patch_embed.img_size)
        if size != tuple(config["input_size"][1:]):
            # a model rebuilt at another size sees the whole picture: timm's crop is tuned for the old one
            config["crop_pct"] = 1.0
        config["input_size"] = (model.patch_embed.proj.weight.shape[1], *size)
    return config


def create_timm(name: str, *, pretrained: bool, **kwargs: Any) -> nn.Module:
    """timm.create_model with our students registered; every failure is a UserError in one line."""
    import timm

    folder = model_folder(name)
    target = f"local-dir:{folder}" if folder else name
    if not folder and ":" not in name and not timm.is_model(name):
        if "/" in name or name.startswith("."):
            raise UserError(f"model folder {name!r} does not exist or holds no config.json")
        raise UserError(f"unknown timm model {name!r}{suggest(name, timm.list_models())}")
    saved = read_model_config(folder).get("model_args", {}) if folder else {}
    try:
        model = timm.create_model(target, pretrained=pretrained, **kwargs)
        # what rebuilds it: timm itself has recorded that only since 1.0.30
        model.transmamba_args = {**saved, **kwargs}
        return model
    except UserError:
        raise
    except Exception as error:
        said = _unknown_option(error, kwargs) or _first_line(error)
        raise UserError(f"timm model {name!r} could not be made: {said}") from error


def _unknown_option(error: Exception, given: dict[str, Any]) -> str | None:
    """What Python says of an argument that nobody takes, in a user's words."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or not found or found[2] not in given:
        return None
    known = {
        name
        for kind in _classes_above(nn.Module)
        if kind.__name__ == found[1] or any(base.__name__ == found[1] for base in kind.__bases__)
        for name in inspect.signature(kind.__init__).parameters
    }
    return f"unknown option {found[2]!r}{suggest(found[2], known - {'self', 'args', 'kwargs'}, limit=40)}"


def _classes_above(kind: type) -> Iterator[type]:
    """Every class that was made from `kind` so far."""
    for made in kind.__subclasses__():
        yield made
        yield from _classes_above(made)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # torch names the model first, and what does not fit on the next line
    return " ".join(line.strip() for line in lines[:2]) if "loading state_dict" in lines[0] else lines[0]


def model_args(model: nn.Module) -> dict[str, Any]:
    """The keyword arguments that rebuild this timm model, beside its architecture and number of classes."""
    args = dict(getattr(model, "transmamba_args", None) or {})
    args.update(getattr(model, "_model_args", None) or {})
    args.pop("global_pool", None)  # reset_classifier may have changed it since
    pool = getattr(model, "global_pool", None)
    if isinstance(pool, str):
        args["global_pool"] = pool
    return {key: value for key, value in args.items() if key not in _NOT_SAVED}


def save_timm(model: Any, folder: Path, preprocessing: Preprocessing | None = None) -> None:
    """Write config.json and model.safetensors as timm does, with the preprocessing the model was trained
    with: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    from timm.models import save_for_hf

    folder.mkdir(parents=True, exist_ok=True)
    if preprocessing is not None:
        model.pretrained_cfg = {**model.pretrained_cfg, **preprocessing.to_pretrained_cfg()}
        model.default_cfg = model.pretrained_cfg
    save_for_hf(model, str(folder), model_args=model_args(model), safe_serialization=True)
