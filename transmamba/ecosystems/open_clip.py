"""open_clip: how its models are recognised, made, read, saved, described, and what their images look like."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.card import Card
from ..core.preprocessing import Preprocessing
from ..errors import UserError, suggest
from . import hooks, hub
from .damaged import damage_of
from .folders import OPEN_CLIP_CONFIG
from .open_clip_looks import looks_of, preprocess_cfg
from .open_clip_names import names, require, split
from .open_clip_tokenizer import CLIP_VOCABULARY, OpenClipTokenizer
from .origin import Origin, origin_of
from .sources import Source, read_source
from .timm import unknown_option
from .weights import unfitting

library = "open_clip"

# of a repository, in the order in which open_clip prefers them; the last is read without running any of it
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# what open_clip looks for in a folder
_KINDS_OF_WEIGHTS = (".safetensors", ".bin", ".pth")
_OURS = "transmamba_open_clip"  # on a model: what it was made from


def recognise(source: Source) -> bool:
    if source.open_clip is not None:
        return True
    if source.bare:
        import timm

        return source.text in names() and not timm.is_model(source.text)  # both have vit_medium_patch16_...
    return "model_cfg" in source.config


def source_of(model: str) -> Source:
    """What a name, a folder or an id means. Raises UserError for what is no model of open_clip."""
    source = read_source(model)
    if not recognise(source):
        raise UserError(f"{model!r} is no model of open_clip; write NAME/TAG, a folder or hf-hub:ID")
    return source


def load(source: Source) -> nn.Module:
    return create_open_clip(source).eval()


def holds(model: nn.Module) -> bool:
    return any(kind.__module__.partition(".")[0] == library for kind in type(model).__mro__)


def create_open_clip(
    source: Source, *, pretrained: bool = True, device: str = "cpu", image_size: int | None = None
) -> nn.Module:
    """open_clip.create_model of a name, `NAME/TAG`, folder or id, in float32; every failure is a UserError in
    one line.

    image_size: pixels a side in place of the model's own; its positions are resized
    """
    require(source.text)
    hooks.register_in("timm")  # an image tower may be a student of ours
    folder: Path | None = None
    import open_clip

    given: dict[str, Any] = dict(load_weights=pretrained, require_pretrained=pretrained, device=device)
    given["force_image_size"] = image_size
    given["pretrained_text"] = False  # a text tower's own weights, where there are none of the whole model
    try:
        with hub.without_waiting(), _quietly(), torch.device(device):
            if source.folder is None and source.repo is None:
                name, tag = split(source.open_clip or source.text)
                cfg, origin = open_clip.get_model_config(name), Origin()
                if pretrained or tag is not None:
                    tagged = _tagged(name, tag)
                    repo, weights = tagged.pop("hf_hub"), tagged.pop("pretrained")
                    if pretrained:
                        origin, given["pretrained"] = _origin(repo), weights
                    # open_clip only warns where a name and its weights disagree
                    given |= tagged
                    cfg = {**cfg, "quick_gelu": tagged["force_quick_gelu"] or cfg.get("quick_gelu", False)}
            else:
                folder = _folder(source, pretrained)
                name, cfg = f"local-dir:{folder}", _whole(source)
                origin = origin_of(source) if pretrained else Origin()
            model: Any = open_clip.create_model(name, **given)
    except UserError:
        raise
    except Exception as error:
        if pretrained and (damaged := damage_of(source.text)) is not None:
            raise UserError(damaged) from error
        said = unfitting(error) or unknown_option(error) or hub.explain(error)
        raise UserError(f"open_clip model {source.text!r} could not be made: {said}") from error
    if image_size is not None:
        cfg = {**cfg, "vision_cfg": {**cfg["vision_cfg"], "image_size": image_size}}
    tokenizer = OpenClipTokenizer.of(cfg.get("text_cfg") or {}, source)
    if tokenizer is not None and tokenizer.revision is not None:  # what is saved of it is read alike
        cfg = {**cfg, "text_cfg": {**cfg["text_cfg"], **tokenizer.text_cfg()}}
    say_made_from(model, cfg, origin, tokenizer)
    return model


def _whole(source: Source) -> Mapping[str, Any]:
    """Its model_cfg. Raises UserError for one that lacks a tower."""
    cfg: Mapping[str, Any] = source.config["model_cfg"]
    lacking = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in cfg]
    if lacking:
        raise UserError(
            f"{source.text!r}: model_cfg in its {OPEN_CLIP_CONFIG} has no {' and no '.join(lacking)}; write "
            "or fetch it again"
        )
    return cfg


def say_made_from(
    model: nn.Module, model_cfg: Mapping[str, Any], origin: Origin, tokenizer: Any = None
) -> None:
    """Write on a model what rebuilds it, whose its weights are and how its texts are read, which it does not
    say itself."""
    setattr(model, _OURS, (copy.deepcopy(dict(model_cfg)), origin, tokenizer))


def build_open_clip(model_cfg: Mapping[str, Any]) -> nn.Module:
    """An untrained model of a model_cfg, in float32. Raises UserError in one line where open_clip cannot
    build it."""
    require("a model_cfg")
    hooks.register_in("timm")
    from open_clip.model import CLIP, CustomTextCLIP

    given = copy.deepcopy(dict(model_cfg))  # open_clip writes into what it is given
    custom = given.pop("custom_text", False) or "hf_model_name" in given.get("text_cfg", {})
    try:
        with _quietly():
            return (CustomTextCLIP if custom else CLIP)(**given)
    except Exception as error:
        raise UserError(f"open_clip cannot build this model_cfg: {hub.explain(error)}") from error


def say_looks(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Write on a model what its images look like."""
    built: Any = model
    built.visual.preprocess_cfg = {**preprocess_cfg(preprocessing), "size": preprocessing.input_size[1:]}


def made_from(model: nn.Module) -> tuple[dict[str, Any] | None, Origin, Any]:
    """What `say_made_from` wrote: (model_cfg, origin, tokenizer); of a model that was made elsewhere, None,
    nothing known, and CLIP's own tokenizer where the text tower has its vocabulary."""
    found: tuple[dict[str, Any] | None, Origin, Any] | None = getattr(model, _OURS, None)
    if found is not None:
        return found
    built: Any = model
    if getattr(built, "vocab_size", None) != CLIP_VOCABULARY:
        return None, Origin(), None
    text = getattr(built, "text", built)
    how = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
    masked = getattr(text, "attn_mask", None) is not None and how in ("argmax", "eos")
    return None, Origin(), OpenClipTokenizer(context=built.context_length, masked=masked)


def _tagged(name: str, tag: str | None) -> dict[str, Any]:
    """What create_model is told of a name's weights, and their repository. Raises UserError for a tag that
    is missing or unknown."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag is None and len(tags) != 1:
        whole = [f"{name}/{each}" for each in tags]
        raise UserError(
            f"{name!r} says no weights; write one of {', '.join(whole)}"
            if whole
            else f"open_clip has no weights of {name!r}"
        )
    if tag is not None and not open_clip.is_pretrained_cfg(name, tag):
        raise UserError(f"open_clip has no weights {tag!r} of {name!r}{suggest(tag, tags, limit=30)}")
    tag = tag or tags[0]
    found = open_clip.get_pretrained_cfg(name, tag)
    return {
        "pretrained": tag,
        "force_quick_gelu": bool(found.get("quick_gelu")),
        "hf_hub": found.get("hf_hub", ""),
    }


def _origin(hf_hub: str) -> Origin:
    """Of `OWNER/NAME/` or `OWNER/NAME/FILE`."""
    repo = "/".join(hf_hub.split("/")[:2]).strip("/")
    return origin_of(Source(text=repo, repo=repo)) if repo else Origin()


def _folder(source: Source, pretrained: bool) -> Path:
    """Where configuration and weights lie side by side."""
    if source.folder is not None:
        if pretrained and not any(any(source.folder.glob(f"*{kind}")) for kind in _KINDS_OF_WEIGHTS):
            raise UserError(
                f"{source.text!r}: holds no weights ({_WEIGHTS[0]}): half written? write it again"
            )
        return source.folder.resolve()
    assert source.repo is not None, "the caller has looked"
    config = hub.fetch(source.repo, OPEN_CLIP_CONFIG, source.revision)
    if config is None:
        raise UserError(f"{source.text!r}: holds no {OPEN_CLIP_CONFIG}")
    found = (hub.fetch(source.repo, name, source.revision) for name in _WEIGHTS if pretrained)
    if pretrained and not any(found):
        raise UserError(f"{source.text!r}: holds none of {', '.join(_WEIGHTS)}")
    return config.parent


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without its log, which repeats what we raise; the root logger is left without a handler of its own
    making."""
    root, handler = logging.getLogger(), logging.NullHandler()
    before = root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def preprocessing(model: nn.Module) -> Preprocessing:
    """What open_clip.image_transform does for its preprocess_cfg; what it leaves out is as open_clip assumes.

    Raises UserError for what a `Preprocessing` cannot say.
    """
    return replace(looks_of(model), text=made_from(model)[2])


def origin(model: Any) -> Origin:
    """Whose the weights of a model are that was loaded here."""
    return made_from(model)[1]


def save(model: nn.Module, folder: Path, preprocessing: Preprocessing | None = None) -> None:
    """Write open_clip_config.json and open_clip_model.safetensors:
    `open_clip.create_model_and_transforms("local-dir:FOLDER")`.

    Raises UserError for a model that was not loaded here: it does not say what it was made from.
    """
    from safetensors.torch import save_file

    built: Any = model
    cfg, _, tokenizer = made_from(model)
    if cfg is None:
        raise UserError(
            "an open_clip model that was made elsewhere does not say its model_cfg; load it by its name or "
            "folder"
        )
    looks = preprocess_cfg(preprocessing or looks_of(model))
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model_cfg": cfg, "preprocess_cfg": looks}, indent=2)
    (folder / OPEN_CLIP_CONFIG).write_text(text + "\n", encoding="utf-8")
    state = {name: tensor.contiguous().clone() for name, tensor in built.state_dict().items()}
    save_file(state, folder / _WEIGHTS[0], metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)


_SNIPPET = """import torch
{ours}import open_clip

model, _, transform = open_clip.create_model_and_transforms("hf-hub:OWNER/NAME")
tokenizer = open_clip.get_tokenizer("hf-hub:OWNER/NAME")
with torch.no_grad():
    words = model.eval().encode_text(tokenizer(["a cat", "a dog"]), normalize=True)
"""


def card(model: nn.Module) -> Card:
    found = origin(model)
    ours = any(type(part).__module__.startswith("transmamba.") for part in model.modules())
    return Card(
        library=library,
        pipeline_tag="zero-shot-image-classification",
        snippet=_SNIPPET.format(ours="import transmamba  # registers the towers\n" if ours else ""),
        licence=found.licence,
        base_model=found.base_model,
    )
