"""Whether an adapter that was saved belongs to this base: by name, and by what its tensors' shapes say."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError
from .asked import listed
from .families.family import Family
from .layer import CONTAINER
from .methods.method import Method, Start
from .saved import Saved
from .targets import described, strangers

Targets = Mapping[str, tuple[Method, ...]]
Found = Mapping[str, tuple[nn.Module, Family]]
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


def check_base(config: Any, model: nn.Module, targets: Targets, found: Found) -> None:
    """Raises UserError where the model was another one when the adapter was made; writes what it is into the
    configuration. What was not written there yet, or is not known of a model, is not compared."""
    here = {name: described(*found[name]) for name in targets}
    mixers = [mixer for name, mixer in here.items() if found[name][1].on == "mixer"]
    sizes = {(mixer.width, mixer.inner, mixer.state, mixer.heads or 0) for mixer in mixers}
    known = [name for name, (_, family) in found.items() if family.on == "mixer"]
    config.base = {
        "modules": len(here),
        "sizes": [list(size) for size in sorted(sizes)],
        "architecture": architecture(model),
        "mixers": len(known) + len(strangers(model)),
        "vocabulary": vocabulary(model, found),
        "classes": getattr(model, "num_classes", None) or None,  # 0: it gives what it sees
    }
    before = dict(config._trained_on or {})
    for key, held in (("vocabulary", holds_words), ("classes", holds_classes)):
        if before.get(key) is not None and not held(config, model, targets, found):
            before[key] = None
    differ = [key for key in config.base if None not in (before.get(key), config.base[key])]
    differ = [key for key in differ if before[key] != config.base[key]]
    if differ:
        there, now = (
            ", ".join(WORDS[key].format(base[key]) for key in differ) for base in (before, config.base)
        )
        raise UserError(f"the adapter is for another base: it is on {there}, and here are {now}")


WORDS = {
    "modules": "{} modules",
    "sizes": "mixers of (width, channels, states, heads) {}",
    "architecture": "{}",
    "mixers": "a model of {} mixers",
    "vocabulary": "{} words",
    "classes": "{} classes",
}


def architecture(model: Any) -> str:
    """What a library calls it: a language student is transformers' model of the same tensors, too."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return kind if isinstance(kind, str) and kind else type(getattr(model, "_orig_mod", model)).__name__


def vocabulary(model: Any, found: Mapping[str, tuple[nn.Module, Family]]) -> int | None:
    """Rows of the table of words; None where it is not known which one that is."""
    tables = {name: pair for name, pair in found.items() if described(*pair).table}
    given = None
    if hasattr(model, "get_input_embeddings"):
        with suppress(NotImplementedError):
            given = model.get_input_embeddings()
    named = [pair for pair in tables.values() if given is None or pair[0] is given]
    return described(*named[0]).shapes["weight"][0] if len(named) == 1 else None


def holds_words(config: Any, model: Any, targets: Targets, found: Found) -> bool:
    """Whether an adapter has something of the table of words or of the head over them, so that a table of
    another size is another base; mixers alone know nothing of it."""
    if any(found[name][1].on == "embedding" for name in targets):
        return True
    parts = []
    for ask in ("get_input_embeddings", "get_output_embeddings"):
        with suppress(NotImplementedError, AttributeError):
            parts.append(getattr(model, ask)())
    tables = [module for module, family in found.values() if described(module, family).table]
    return whole(config, model, [*parts, *tables])


def holds_classes(config: Any, model: Any, targets: Targets, found: Found) -> bool:
    """Whether an adapter brings the head whose classes are counted."""
    if not (config._trained_on or {}).get("classes") or not config.modules_to_save:
        return False
    return not hasattr(model, "get_classifier") or whole(config, model, [model.get_classifier()])


def whole(config: Any, model: nn.Module, parts: Sequence[Any]) -> bool:
    """Whether any of these modules is trained whole: it, what is in it, or what it is in."""
    ends = tuple(config.modules_to_save or ())
    wanted = {id(module) for part in parts if isinstance(part, nn.Module) for module in part.modules()}
    chosen = (
        [module for name, module in model.named_modules() if name and name.endswith(ends)] if ends else []
    )
    return any(id(inner) in wanted for module in chosen for inner in module.modules())


def check_tensors(
    config: Any,
    targets: Targets,
    found: Mapping[str, tuple[nn.Module, Family]],
    saved: Mapping[str, Saved] | None = None,
) -> None:
    """Raises UserError where tensors that were saved are others than the adapter has on this model, and where
    what they hold cannot be right."""
    saved = config._saved if saved is None else saved
    if saved is None:
        return
    wanted: dict[str, Start] = {}
    for name, methods in targets.items():
        for method in methods:
            starts = method.tensors(described(*found[name]))
            wanted |= {f"{name}.{CONTAINER}.{tensor}": start for tensor, start in starts.items()}
    given = {key.removeprefix(ROOT): one for key, one in saved.items() if f".{CONTAINER}." in key}
    other = "it was saved for another base, or is damaged"
    for key in [*wanted, *given]:
        if key not in given:
            raise UserError(f"the adapter has no {key}, which this model needs: {other}")
        if key not in wanted:
            raise UserError(f"the adapter has {key}, for which this model has no place: {other}")
        if given[key].shape != wanted[key].shape:
            shapes = f"{given[key].shape}, this model's {wanted[key].shape}"
            raise UserError(f"the adapter's {key} is {shapes}: {other}")
        if given[key].floats == wanted[key].buffer:
            kind = "whole numbers" if wanted[key].buffer else "numbers that can be trained"
            raise UserError(f"the adapter's {key} is not of {kind}: the file is damaged")
        below, (least, most) = wanted[key].below, given[key].span or (0, 0)
        if below is not None and not 0 <= least <= most < below:
            raise UserError(
                f"the adapter's {key} has {least if least < 0 else most}, and this model's numbers are below "
                f"{below}: {other}"
            )
    unfit = next((key for key, one in saved.items() if not one.finite), None)
    if unfit is not None:
        raise UserError(f"the adapter's {unfit} has numbers that are not finite: the file is damaged")


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
        # of an adapter that was saved it was looked at when it was made, or not at all: then nothing is lost
        if config._trained_on is not None and not any(f"{name}." in key for key in config._saved or ()):
            continue
        if any(key.endswith(name) for key in names) or (config.task_type and name in HEADS):
            continue
        free = [key for key in names if not any(f"{key}.".startswith(f"{one}.") for one in targets)]
        near = difflib.get_close_matches(name, [key.rpartition(".")[2] for key in free], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        outer = [key for key in free if "." not in key]
        raise UserError(
            f"modules_to_save: {name!r} is no module of the model; {hint}outermost: {listed(outer, 8)}"
        )
