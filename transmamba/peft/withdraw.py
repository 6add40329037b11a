"""An adapter that was refused leaves a model as it was."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .layer import MambaPeftLayer
from .stream import end


@contextmanager
def withdraw(model: Any, adapter_name: str) -> Iterator[None]:
    """Where what is inside fails: the adapter is taken out of the model again, and what it had wrapped."""
    try:
        yield
    except Exception:
        for name, module in list(model.named_modules()):
            if _left(module, adapter_name):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, _inner(module))
        _forget(model, adapter_name)
        raise


def loading() -> bool:
    """Whether a call of PEFT's is under way that loads an adapter's weights when it has put it in. It says so
    by no argument, and what it puts in is taken out where the weights are refused."""
    return any(
        frame.f_code.co_name in ("from_pretrained", "load_adapter")
        and frame.f_globals.get("__name__", "").partition(".")[0] == "peft"
        for frame, _ in traceback.walk_stack(None)
    )


def _left(module: nn.Module, adapter_name: str) -> bool:
    """Take an adapter out of a wrapper; whether it wraps nothing any more."""
    if isinstance(module, MambaPeftLayer) and adapter_name in module.methods:
        module.delete_adapter(adapter_name)
        if not module.methods:
            end(module)
        return not module.methods
    if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
        active = [name for name in module.active_adapters if name != adapter_name]
        module.delete_adapter(adapter_name, active)
        return not module.modules_to_save
    return False


def _inner(module: Any) -> nn.Module:
    found: nn.Module = module.base_layer if isinstance(module, MambaPeftLayer) else module.original_module
    return found


def _forget(model: Any, adapter_name: str) -> None:
    """No name of it stays, and where it was the only one nothing says that there are adapters: transformers
    notes that one is there before it asks for it, and a tuner watches the first step."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = getattr(base, "peft_config", {})
    kept.pop(adapter_name, None)
    if kept:
        return
    if "peft_config" in vars(base):
        del base.peft_config
    if getattr(base, "_hf_peft_config_loaded", False):
        base._hf_peft_config_loaded = False
    for key, hook in list(base._forward_hooks.items()):
        if isinstance(getattr(hook, "__self__", None), BaseTuner):
            del base._forward_hooks[key]
