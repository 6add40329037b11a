"""Adapters written into the model's own weights, where these can say the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..errors import UserError
from .config import MambaPeftConfig
from .layer import MambaPeftLayer, refuse_merge
from .methods.additional_scan import AdditionalScan
from .targets import candidates, described


def layers_of(model: nn.Module) -> dict[str, MambaPeftLayer]:
    """By name: what is wrapped in a model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MambaPeftLayer)}


def check_merge(model: Any, configs: Iterable[MambaPeftConfig], mixers: int) -> None:
    """Raises UserError, before anything is changed, for adapters that the weights cannot hold.

    mixers: how many the model has, of which a larger state size is all or nothing
    """
    for config in configs:
        refuse_merge(config.parts)
        wider = next((part for part in config.parts if isinstance(part, AdditionalScan)), None)
        taken = sum(wider in methods for methods in config._targets.values()) if wider else mixers
        if taken != mixers:
            raise UserError(
                f"additional_scan cannot be merged: it is on {taken} of {mixers} mixers, and a model has one "
                "state size; adapt all of them, or keep the adapter beside the model"
            )


def note_state_size(model: Any) -> None:
    """The model's configuration, or what a student of timm is made by, says how many states its mixers have
    now."""
    config: Any = getattr(model, "config", None)
    owners: list[Any] = [owner for owner in model.modules() if "transmamba_args" in vars(owner)]
    for module, family in candidates(model).values():
        mixer = described(module, family)
        if mixer.counts_states is None or mixer.config_key is None:
            continue
        states = getattr(module, mixer.counts_states)
        if hasattr(config, "get_text_config"):
            setattr(config.get_text_config(), mixer.config_key, states)
        for owner in owners:  # of timm: itself, or the tower of something larger
            for arguments in ("transmamba_args", "_model_args"):
                kept = getattr(owner, arguments, None)
                if kept:
                    setattr(owner, arguments, {**kept, mixer.config_key: states})


def note_untied(model: Any) -> None:
    """An embedding was merged, and a head that was tied to it is as it was: the configuration says that they
    are two. PEFT says so where a model of transformers asks for them by name."""
    config: Any = getattr(model, "config", None)
    for part in (config, config.get_text_config()) if hasattr(config, "get_text_config") else ():
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False
