"""Adapters that lie beside a student's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .folders import ADAPTER_CONFIG


def put_adapter_on(model: nn.Module, folder: Path | None) -> None:
    """The adapter of ours in a model's folder, in place, where there is one and it is not on already. Raises
    UserError where it does not fit."""
    if folder is None or hasattr(model, "tuned") or not (folder / ADAPTER_CONFIG).is_file():
        return
    from ..peft.student import put_on

    put_on(model, folder)


def put_timm_adapter_on(model: Any, pretrained: bool) -> None:
    """Likewise of one that timm has made from a folder (`local-dir:FOLDER`), with its weights."""
    said = model.pretrained_cfg.get("file") if pretrained else None
    if said is not None:  # the folder, or the file of weights in it
        put_adapter_on(model, Path(said) if Path(said).is_dir() else Path(said).parent)
