"""timm: how a model of its is recognised, made, read, saved, described, and what its images look like."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.card import Card
from ..core.preprocessing import Preprocessing
from ..errors import UserError, suggest
from . import hooks, hub
from .damaged import damage_of
from .folders import read_model_config
from .origin import Origin, origin_of
from .sources import Source, read_source
from .weights import head_of, load_strictly, read_weights, unfitting

library = "timm"

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
# of a pretrained_cfg: what images look like
_LOOKS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
# of a pretrained_cfg: whose weights they are
_ORIGIN = ("license", "origin_url", "hf_hub_id")


def check_options(kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError for what is no option of a model, but says whose weights to load. An overlay may say
    what images look like: where there is no teacher, nobody else does."""
    wrong = [name for name in ("pretrained", "pretrained_cfg", "checkpoint_path") if name in kwargs]
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    wrong += [f"pretrained_cfg_overlay.{name}" for name in overlay if name not in _LOOKS]
    if wrong:
        raise ValueError(f"kwargs.{wrong[0]} is no option of a model; leave it out")


def recognise(source: Source) -> bool:
    import timm

    hooks.register_in(library)
    if source.file is not None:
        return source.architecture is not None
    if source.bare:
        return timm.is_model(source.text)
    return "architecture" in source.config or (source.repo or "").startswith("timm/")


def load(source: Source) -> nn.Module:
    return create_timm(source, pretrained=True).eval()


def holds(model: nn.Module) -> bool:
    return hasattr(model, "pretrained_cfg")


def preprocessing(model: nn.Module) -> Preprocessing:
    """That of its pretrained_cfg, with the input size it was really built for."""
    built: Any = model
    config = dict(built.pretrained_cfg)
    patch_embed = getattr(built, "patch_embed", None)
    if patch_embed is not None and getattr(patch_embed, "img_size", None):
        size = tuple(patch_embed.img_size)
        if size != tuple(config["input_size"][1:]):
            # a model rebuilt at another size sees the whole picture: timm's crop is tuned for the old one
            config["crop_pct"] = 1.0
        config["input_size"] = (patch_embed.proj.weight.shape[1], *size)
    return Preprocessing.from_pretrained_cfg(config)


def create_timm(name: str | Source, *, pretrained: bool, **kwargs: Any) -> nn.Module:
    """timm.create_model with our students registered, of a name, folder, id or (`read_source`) a file of
    weights; every failure is a UserError in one line."""
    import timm

    hooks.register_in(library)
    source = name if isinstance(name, Source) else read_source(name)
    if source.bare and not timm.is_model(source.text):
        raise UserError(f"unknown timm model {source.text!r}{suggest(source.text, timm.list_models())}")
    if source.file is not None:
        return _from_file(source, **kwargs)
    if source.folder is not None and "architecture" not in source.config:
        kind = source.config.get("model_type")
        whose = "" if kind is None else f" but the model_type {kind} of transformers"
        raise UserError(
            f"{source.text!r} is no model of timm: its config.json names no `architecture`{whose}; write a "
            "folder that timm or transmamba wrote of an image model"
        )
    saved = read_model_config(source.folder).get("model_args", {}) if source.folder else {}
    model: Any = _create(source, pretrained, kwargs)
    # what rebuilds it: timm itself has recorded that only since 1.0.30
    model.transmamba_args = {**saved, **kwargs}
    _say_whose(model, _found(source, model) if pretrained else Origin())
    return model


def _create(source: Source, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    target = source.text
    if source.folder is not None:
        target = f"local-dir:{source.folder}"
    elif source.repo is not None:
        target = f"hf-hub:{source.repo}" + (f"@{source.revision}" if source.revision else "")
    try:
        with hub.without_waiting():
            return timm.create_model(target, pretrained=pretrained, **kwargs)
    except UserError:
        raise
    except Exception as error:
        said = damage_of(source.text) if pretrained else None
        raise UserError(
            said or f"timm model {source.text!r} could not be made: {explained(error, kwargs)}"
        ) from error


def explained(error: Exception, given: Mapping[str, Any]) -> str:
    """In one line, what timm or a student says of the options that it was `given`."""
    found = unknown_option(error, given) or unfitting(error)
    return found or hub.explain(error)


def _from_file(source: Source, **kwargs: Any) -> nn.Module:
    """The model whose weights a file holds; classes and channels are those of its tensors."""
    assert source.file is not None, "the caller has looked"
    if source.architecture is None:
        raise UserError(f"{source.text!r} holds weights alone; say whose, by a timm name")
    state = read_weights(source.file)
    with torch.device("meta"):
        config: Any = create_timm(source.architecture, pretrained=False).pretrained_cfg
    classes = head_of(state, config.get("classifier"))
    channels = state.get(f"{config.get('first_conv')}.weight")
    shape = {} if channels is None or channels.dim() != 4 else {"in_chans": channels.shape[1]}
    model = create_timm(source.architecture, pretrained=False, **{"num_classes": classes, **shape, **kwargs})
    load_strictly(model, state, f"{source.text!r} does not fit {source.architecture}")
    return model


def _found(source: Source, model: Any) -> Origin:
    """Whose weights were loaded: the model card goes before what the pretrained_cfg says."""
    ours = origin(model)
    if source.bare or (source.repo is not None and ours.licence):
        return ours
    said = origin_of(source)
    return Origin(said.licence or ours.licence, said.base_model or ours.base_model)


def origin(model: Any) -> Origin:
    """Whose the weights of a model in hand are, as its pretrained_cfg says."""
    config = model.pretrained_cfg
    repo = (config.get("hf_hub_id") or "").partition("@")[0]
    return Origin(config.get("license"), repo or hub.repository(config.get("origin_url")))


def _say_whose(model: Any, origin: Origin) -> None:
    """Write the licence and the origin of its weights, or that nothing is known, into its pretrained_cfg."""
    config = {key: value for key, value in model.pretrained_cfg.items() if key not in _ORIGIN}
    config["license"] = origin.licence
    config["origin_url"] = None if origin.base_model is None else hub.address(origin.base_model)
    model.pretrained_cfg = model.default_cfg = config


def say_whose(model: nn.Module, licence: str | None, base_model: str | None) -> None:
    """A student's weights derive from its teacher's: the same licence, and where they come from."""
    _say_whose(model, Origin(licence, base_model))


def class_names(model: Any) -> tuple[str, ...] | None:
    """`label_names` of its pretrained_cfg, where each class has one."""
    names: Any = model.pretrained_cfg.get("label_names")
    if isinstance(names, dict):
        names = [names.get(str(k), names.get(k)) for k in range(model.num_classes)]
    if not names or len(names) != model.num_classes or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def nearest(name: str) -> str:
    """`; did you mean 'vit_tiny_patch16_224'?`, or nothing."""
    import timm

    close = difflib.get_close_matches(name, timm.list_models(["*vit*", "*deit*", "*vim*"]), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_option(error: Exception, given: Mapping[str, Any] | None = None) -> str | None:
    """What Python says of an argument that nobody takes, in a user's words; of those `given` alone, where
    they are known."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or not found or (given is not None and found[2] not in given):
        return None
    known = {
        name
        for kind in _classes_above(nn.Module)
        if kind.__name__ == found[1] or any(base.__name__ == found[1] for base in kind.__bases__)
        for name in inspect.signature(kind).parameters
    }
    return f"unknown option {found[2]!r}{suggest(found[2], known - {'self', 'args', 'kwargs'}, limit=40)}"


def _classes_above(kind: type[nn.Module]) -> Iterator[type[nn.Module]]:
    """Every class that was made from `kind` so far."""
    for made in kind.__subclasses__():
        yield made
        yield from _classes_above(made)


def model_args(model: nn.Module) -> dict[str, Any]:
    """The keyword arguments that rebuild this timm model, beside its architecture and number of classes."""
    args = dict(getattr(model, "transmamba_args", None) or {})
    args.update(getattr(model, "_model_args", None) or {})
    args.pop("global_pool", None)  # reset_classifier may have changed it since
    pool = getattr(model, "global_pool", None)
    if isinstance(pool, str):
        args["global_pool"] = pool
    return {key: value for key, value in args.items() if key not in _NOT_SAVED}


def save(model: nn.Module, folder: Path, preprocessing: Preprocessing | None = None) -> None:
    """Write config.json and model.safetensors as timm does, with the preprocessing the model was trained
    with: `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    from timm.models import save_for_hf

    folder.mkdir(parents=True, exist_ok=True)
    built: Any = model
    _say_whose(built, origin(built))
    if preprocessing is not None:
        built.pretrained_cfg = {**built.pretrained_cfg, **preprocessing.to_pretrained_cfg()}
        built.default_cfg = built.pretrained_cfg
    save_for_hf(built, str(folder), model_args=model_args(built), safe_serialization=True)


_SNIPPET = """import timm
{ours}
model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
"""


def card(model: nn.Module) -> Card:
    built: Any = model
    found = origin(built)
    ours = type(model).__module__.startswith("transmamba.")
    snippet = _SNIPPET.format(
        ours="import transmamba  # registers the architecture in timm\n" if ours else ""
    )
    return Card(
        library=library,
        pipeline_tag="image-classification" if built.num_classes else "image-feature-extraction",
        snippet=snippet,
        licence=found.licence,
        base_model=found.base_model,
    )
