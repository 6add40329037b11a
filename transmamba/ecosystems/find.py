"""Which library a model belongs to, and what that library does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..core.card import Card
from ..core.preprocessing import PicturesAndText, Preprocessing, of_pictures
from ..errors import UserError
from . import open_clip, open_clip_names, points, timm, transformers
from .adapters import put_adapter_on, tuned_of
from .ecosystem import Ecosystem
from .folders import let_read, model_folder, no_model_in
from .sources import Source, read_source

# who is asked, in this order; whoever brings a library of their own appends it
ECOSYSTEMS: list[Ecosystem] = [timm, transformers, open_clip, points]


def ecosystem_of(source: Source) -> Ecosystem:
    """The library that loads it. Raises UserError with what was tried."""
    for ecosystem in ECOSYSTEMS:
        if ecosystem.recognise(source):
            return ecosystem
    if source.bare and (here := Path(source.text).expanduser()).is_dir():
        raise UserError(f"{source.text!r}: {no_model_in(here)}")
    if source.bare:
        hint = timm.nearest(source.text) or open_clip_names.nearest(source.text)
        raise UserError(
            f"{source.text!r}: no such folder, timm model or Hugging Face id{hint}; "
            "write a folder that holds config.json, a timm name such as deit_small_patch16_224, or an id "
            "such as google/vit-base-patch16-224"
        )
    if source.file is not None:
        beside = model_folder(source.file.parent)
        folder = "" if beside is None else f"write its folder, {str(beside)!r}, or "
        raise UserError(
            f"{source.text!r} holds weights alone; {folder}say whose, by a timm name such as "
            "deit_small_patch16_224: --architecture NAME (--teacher-architecture NAME of `evaluate "
            "--teacher`), or in a recipe {name: timm_vit, model: FILE, architecture: NAME}"
        )
    raise UserError(
        f"{source.text!r}: its config.json names neither timm's `architecture` nor the `model_type` of "
        "transformers, and there is no open_clip_config.json with a model_cfg"
    )


def owner_of(model: nn.Module) -> Ecosystem:
    """The library of a model in hand. Raises UserError for nobody's."""
    for ecosystem in ECOSYSTEMS:
        if ecosystem.holds(model):
            return ecosystem
    known = ", ".join(ecosystem.library for ecosystem in ECOSYSTEMS)
    raise UserError(f"{type(model).__name__} is a model of none of {known}")


def load_model(source: str | Path, architecture: str | None = None) -> nn.Module:
    """The model that a folder, a timm name, a Hugging Face id or, with `architecture` (a timm name), a file
    of weights means, with its weights, in evaluation mode."""
    found = read_source(str(source), architecture)
    model = ecosystem_of(found).load(found)
    put_adapter_on(model, found.folder)
    return model


def save_model(
    model: nn.Module, folder: Path, preprocessing: Preprocessing | PicturesAndText | None = None
) -> None:
    """Write a model as its own library does, with the preprocessing it was trained with. An adapter on it is
    in its weights where they can hold it; else its files lie beside them, and `load_model` puts it on."""
    pictures = None if preprocessing is None else of_pictures(preprocessing)  # its words are its own to save
    tuned = tuned_of(model)
    plain = model if tuned is None else tuned.plain()
    owner_of(plain).save(plain, Path(folder), pictures)
    if tuned is not None and not tuned.merges:
        tuned.save_beside(Path(folder))
    let_read(Path(folder))


def preprocessing_of(model: nn.Module) -> Any:
    """What a model of a library we know wants its images to look like, a `Preprocessing`; of one that reads
    texts alone its tokenizer, a `core.text.TextOnly`; of one that writes about pictures both, a
    `core.preprocessing.PicturesAndText`."""
    return owner_of(model).preprocessing(model)


def card_of(model: nn.Module) -> Card | None:
    """Facts for the model card of a model in hand; None for one that no library loads."""
    owners = [ecosystem for ecosystem in ECOSYSTEMS if ecosystem.holds(model)]
    return owners[0].card(model) if owners else None
