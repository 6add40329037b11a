"""Adapters that lie beside a student's weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError
from .folders import ADAPTER_CONFIG


def put_adapter_on(model: nn.Module, folder: Path | None) -> None:
    """The adapter of ours in a model's folder, in place, where there is one and it is not on already. Raises
    UserError where it does not fit."""
    if folder is None or hasattr(model, "tuned") or not (folder / ADAPTER_CONFIG).is_file():
        return
    from ..peft.student import put_on

    put_on(model, folder)


def tuned_of(model: nn.Module) -> Any:
    """What is known of the adapter that this library put on a model (`peft.student.Tuned`); None without one.
    Raises UserError for one that PEFT put there, of which nothing is known here but wrappers."""
    tuned = getattr(model, "tuned", None)
    if tuned is None and "peft" in sys.modules:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import ModulesToSaveWrapper

        if any(isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in model.modules()):
            raise UserError(
                f"this {type(model).__name__} has an adapter that PEFT put on it, and can neither be saved "
                "nor write like that: call merge_and_unload() or unload() of PEFT's model first, or put the "
                "adapter on by transmamba.peft.student, tune(student, config) or put_on(student, folder)"
            )
    return tuned


def put_timm_adapter_on(model: Any, pretrained: bool) -> None:
    """Likewise of one that timm has made from a folder (`local-dir:FOLDER`), with its weights."""
    said = model.pretrained_cfg.get("file") if pretrained else None
    if said is not None:  # the folder, or the file of weights in it
        put_adapter_on(model, Path(said) if Path(said).is_dir() else Path(said).parent)
