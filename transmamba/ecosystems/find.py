"""Which library a model belongs to, and what that library does with it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..core.preprocessing import Preprocessing
from .folders import model_folder, read_model_config
from .timm import create_timm, save_timm, timm_preprocessing
from .transformers import hugging_face_preprocessing, load_hugging_face, save_transformers


def load_model(source: str | Path) -> nn.Module:
    """The model that a folder, a timm name or a Hugging Face id means, with its weights, in evaluation
    mode."""
    folder = model_folder(source)
    if folder is not None and "architecture" not in read_model_config(folder):
        return load_hugging_face(str(folder))
    if folder is None and str(source).count("/") == 1 and not str(source).startswith(("timm/", "hf-hub:")):
        return load_hugging_face(str(source))
    return create_timm(str(source), pretrained=True).eval()


def save_model(model: nn.Module, folder: Path, preprocessing: Preprocessing | None = None) -> None:
    """Write a model as its own library does, with the preprocessing it was trained with."""
    save = save_transformers if hasattr(model, "save_pretrained") else save_timm
    save(model, Path(folder), preprocessing)


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """What a timm or Hugging Face model wants its images to look like."""
    if hasattr(model, "pretrained_cfg"):
        return Preprocessing.from_pretrained_cfg(timm_preprocessing(model))
    config: object = model.config
    return hugging_face_preprocessing(config, getattr(model, "name_or_path", ""))
