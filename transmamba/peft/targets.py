"""Which modules of a model an adapter goes to."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config.registry import FAMILIES
from ..errors import UserError
from .asked import chosen, listed, refuse_vain
from .config import MambaPeftConfig
from .families.family import Family, family_of
from .families.mixer import Mixer
from .families.opening import note_owner
from .layer import MambaPeftLayer
from .methods.method import Method


def candidates(model: nn.Module) -> dict[str, tuple[nn.Module, Family]]:
    """By name: the modules that adapters know, those that are wrapped already among them."""
    found: dict[str, tuple[nn.Module, Family]] = {}
    last = None  # a module's own modules follow it
    for name, module in model.named_modules():
        if not name or (last is not None and name.startswith(f"{last}.")):
            continue
        family = module.family if isinstance(module, MambaPeftLayer) else family_of(module)
        if family is not None:
            if family.on == "embedding":
                note_owner(model, name, getattr(module, "base_layer", module))
            found[name] = (module, family)
            last = name
    return found


def described(module: nn.Module, family: Family) -> Mixer:
    """Its sizes and places, as they are without adapters."""
    return module.mixer if isinstance(module, MambaPeftLayer) else family.describe(module)


def targets_of(config: MambaPeftConfig, model: nn.Module) -> dict[str, tuple[Method, ...]]:
    """By name of a module, the methods that it takes. Raises UserError for what matches or fits nothing."""
    found = candidates(model)
    mixers = {name: pair for name, pair in found.items() if pair[1].on == "mixer"}
    targets: dict[str, tuple[Method, ...]] = {}
    on_mixers = tuple(method for method in config.parts if method.on == "mixer")
    if not mixers:
        others = sorted({type(module).__name__ for module in strangers(model).values()})
        raise UserError(
            f"{type(model).__name__} has no Mamba mixer of these: {known_classes()}"
            + (f"; it has {', '.join(others)}" if others else "")
            + ("" if on_mixers else "; use PEFT's own LoRA on its embedding, or its prompt tuning")
        )
    if config._trained_on is None:  # of an adapter that was saved they were looked at when it was made
        refuse_vain(config, list(mixers), bool(on_mixers))
    if on_mixers:
        targets |= dict.fromkeys(chosen(config, list(mixers)), on_mixers)
    on_embedding = tuple(method for method in config.parts if method.on == "embedding")
    if on_embedding:
        targets[embedding_of(model, found, on_embedding[0])] = on_embedding
    for name, methods in targets.items():
        module, family = found[name]
        refuse_quantised(name, module)
        mixer = described(module, family)
        for method in methods:
            method.tensors(mixer)
    return targets


def embedding_of(model: Any, found: dict[str, tuple[nn.Module, Family]], method: Method) -> str:
    """The name of the embedding that `model` says is its own, or of the only one."""
    tables = {name: module for name, (module, family) in found.items() if family.on == "embedding"}
    given = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    named = [name for name, module in tables.items() if given is None or module is given]
    if len(named) != 1:
        count = f"{len(named)} embeddings, and does not say which is its own" if named else "no embedding"
        raise UserError(f"method {method.name!r}: {type(model).__name__} has {count}; leave it out")
    return named[0]


def known_classes() -> str:
    mixers = [FAMILIES[name] for name in FAMILIES if FAMILIES[name].on == "mixer"]
    return listed([path.rpartition(".")[2] for family in mixers for path in family.classes], 20)


def strangers(model: nn.Module) -> dict[str, nn.Module]:
    """By name: modules that hold decay rates, and so are mixers, but are of no family."""
    found = candidates(model)
    return {
        name: module
        for name, module in model.named_modules()
        if "A_log" in module._parameters and not any(f"{name}.".startswith(f"{known}.") for known in found)
    }


def refuse_quantised(name: str, module: nn.Module) -> None:
    """UserError for weights that nothing can be added to."""
    packed = next((p for p in module.parameters() if not p.is_floating_point() or p.element_size() < 2), None)
    if packed is not None:
        raise UserError(
            f"{name} holds quantised weights ({packed.dtype}), and adapters for Mamba change the weights; "
            "load the model without quantisation"
        )
