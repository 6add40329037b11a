"""Whether an adapter that was saved belongs to this base: by name, and by what its tensors' shapes say."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError
from .asked import listed
from .families.family import Family
from .layer import CONTAINER, MambaPeftLayer
from .methods.method import Method
from .stream import end
from .targets import described

Shapes = Mapping[str, tuple[int, ...]]
Targets = Mapping[str, tuple[Method, ...]]
ROOT = "base_model.model."


def check_names(config: Any, model: nn.Module) -> None:
    """Raises UserError where the adapter says that it was trained on a model that is called otherwise. Only
    the last part of a path counts; a base without a name is taken."""
    trained_on, here = config.base_model_name_or_path, getattr(model, "name_or_path", None)
    if not trained_on or not here or last_name(trained_on) == last_name(here):
        return
    raise UserError(
        f"the adapter was trained on {trained_on!r}, and this model is {here!r}; load that one, or, where "
        "they are the same, give a config whose base_model_name_or_path is None"
    )


def last_name(path: str) -> str:
    """Of OWNER/NAME, of a folder, or of where Hugging Face's cache has OWNER/NAME."""
    parts = Path(path).parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rpartition("--")[2]
    return parts[-1] if parts else ""


def check_sizes(config: Any, targets: Targets, found: Mapping[str, tuple[nn.Module, Family]]) -> None:
    """Raises UserError where what was adapted had other sizes; writes them into the configuration."""
    here = {name: described(*found[name]) for name in targets}
    mixers = [mixer for name, mixer in here.items() if found[name][1].on == "mixer"]
    sizes = {(mixer.width, mixer.inner, mixer.state, mixer.heads or 0) for mixer in mixers}
    config.base = {"modules": len(here), "sizes": [list(size) for size in sorted(sizes)]}
    if config._trained_on not in (None, config.base):
        there, now = (
            f"{base.get('modules')} modules of (width, channels, states, heads) {base.get('sizes')}"
            for base in (config._trained_on, config.base)
        )
        raise UserError(f"the adapter is for another base: it is on {there}, and here are {now}")


def check_shapes(
    config: Any, targets: Targets, found: Mapping[str, tuple[nn.Module, Family]], saved: Shapes | None = None
) -> None:
    """Raises UserError where tensors that were saved are others than the adapter has on this model."""
    saved = config._saved if saved is None else saved
    if saved is None:
        return
    wanted: dict[str, tuple[int, ...]] = {}
    for name, methods in targets.items():
        for method in methods:
            starts = method.tensors(described(*found[name]))
            wanted |= {f"{name}.{CONTAINER}.{tensor}": start.shape for tensor, start in starts.items()}
    given = {key.removeprefix(ROOT): shape for key, shape in saved.items() if f".{CONTAINER}." in key}
    other = "it was saved for another base, or is damaged"
    for key in [*wanted, *given]:
        if key not in given:
            raise UserError(f"the adapter has no {key}, which this model needs: {other}")
        if key not in wanted:
            raise UserError(f"the adapter has {key}, for which this model has no place: {other}")
        if given[key] != wanted[key]:
            raise UserError(f"the adapter's {key} is {given[key]}, this model's {wanted[key]}: {other}")


@contextmanager
def withdraw(model: Any, adapter_name: str) -> Iterator[None]:
    """Where what is inside fails: the adapter is taken out of the model again, and what it had wrapped."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    try:
        yield
    except UserError:
        for name, module in list(model.named_modules()):
            if not isinstance(module, MambaPeftLayer) or adapter_name not in module.methods:
                continue
            module.delete_adapter(adapter_name)
            if not module.methods:
                end(module)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, module.base_layer)
        model.peft_config.pop(adapter_name, None)
        if not inner.peft_config:
            del inner.peft_config
        raise


# which PEFT adds for tasks of classes and of questions, whatever the model's head is called
HEADS = ("classifier", "score", "qa_outputs")


def check_saved(config: Any, targets: Mapping[str, Any], model: nn.Module) -> None:
    """Raises UserError for a module that is to be trained whole, and is adapted or within one that is, or is
    none of the model's."""
    names = [key for key, _ in model.named_modules() if key and f".{CONTAINER}" not in key]
    for name in config.modules_to_save or ():
        for key in targets:
            inside = [key, *(f"{key}.{part}" for part, _ in model.get_submodule(key).named_modules() if part)]
            hit = next((each for each in inside if each == name or each.endswith(f".{name}")), None)
            if hit is not None:
                raise UserError(
                    f"modules_to_save: {name!r} is {hit}, which the adapter changes; leave it out, or "
                    "the methods that go there"
                )
        if any(key.endswith(name) for key in names) or (config.task_type and name in HEADS):
            continue
        free = [key for key in names if not any(f"{key}.".startswith(f"{one}.") for one in targets)]
        near = difflib.get_close_matches(name, [key.rpartition(".")[2] for key in free], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        outer = [key for key in free if "." not in key]
        raise UserError(
            f"modules_to_save: {name!r} is no module of the model; {hint}outermost: {listed(outer, 8)}"
        )
