"""Which of a model's mixers a configuration asks for, and what of it asks in vain."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

from ..errors import UserError
from .config import MambaPeftConfig, in_front

ON_MIXERS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def matching(names: list[str], wanted: Any, **rules: Any) -> list[str]:
    """Those of the mixers' names that PEFT's rules give.

    wanted: target_modules, or one of them in a list
    rules:  the configuration's others; what is left out is None
    """
    others = dict.fromkeys((*ON_MIXERS, "modules_to_save", "target_parameters"))
    asked = SimpleNamespace(**{**others, **rules, "target_modules": wanted})
    # PEFT finds a layer's number behind two names, and a student's layers are its outermost modules
    numbered = asked.layers_to_transform is not None and not isinstance(wanted, str)
    called = {name: f"model.{name}" if numbered and name.count(".") <= 2 else name for name in names}
    answers = {name: check_target_module_exists(asked, called[name]) for name in names}
    return [name for name, yes in answers.items() if yes and not isinstance(yes, _ExcludedModule)]


def chosen(config: MambaPeftConfig, names: list[str]) -> list[str]:
    """Those of the mixers' names that the configuration asks for. Raises UserError where one asks in vain."""
    wanted, result = config.target_modules, list[str]()
    asked: list[Any] = (
        [[one] for one in wanted] if isinstance(wanted, list | set) else [wanted or ends(names)]
    )
    for one in asked:
        matched = matching(
            names,
            one,
            exclude_modules=config.exclude_modules,
            layers_to_transform=config.layers_to_transform,
            layers_pattern=config.layers_pattern,
            modules_to_save=config.modules_to_save,
        )
        if not matched:
            if wanted is None:
                raise UserError(f"layers_to_transform and exclude_modules leave none of {listed(names)}")
            what = one if isinstance(one, str) else one[0]
            raise UserError(f"target_modules: {what!r} matches no mixer; mixers: {listed(names)}")
        result += matched
    if not result:
        raise UserError(f"target_modules is empty; leave it out for all of {listed(names)}")
    return list(dict.fromkeys(result))


def refuse_vain(config: MambaPeftConfig, names: list[str], on_mixers: bool) -> None:
    """Raises UserError, with what would match, where a part of what is asked of the mixers matches nothing:
    the rest of it would be adapted without a word.

    on_mixers: whether any method is for mixers
    """
    given = [key for key in ON_MIXERS if getattr(config, key) is not None]
    if given and not on_mixers:
        raise UserError(
            f"{given[0]}: {getattr(config, given[0])!r} is of mixers, and "
            f"{', '.join(part.name for part in config.parts)} is of the embedding; leave it out, or name a "
            "method of mixers, such as lora_x"
        )
    excluded = config.exclude_modules
    for one in [excluded] if isinstance(excluded, str) else [[name] for name in excluded or ()]:
        if len(matching(names, ends(names), exclude_modules=one)) == len(names):
            what = one if isinstance(one, str) else one[0]
            raise UserError(f"exclude_modules: {what!r} matches no mixer; mixers: {listed(names)}")
    refuse_layers(config, names)


def refuse_layers(config: MambaPeftConfig, names: list[str]) -> None:
    """UserError for numbers of layers that have no mixer, and for patterns that stand before no number."""
    layers, patterns = config.layers_to_transform, config.layers_pattern
    if layers is not None and isinstance(config.target_modules, str):
        raise UserError(
            f"layers_to_transform: {layers} is not read beside a regular expression in target_modules; write "
            "the numbers there, or the ends of names in a list"
        )
    if patterns and layers is None:
        raise UserError(f"layers_pattern: {patterns!r} is not read without layers_to_transform; leave it out")
    for pattern in [patterns] if isinstance(patterns, str) else patterns or ():
        if not any(re.match(in_front(pattern), name) for name in names):
            raise UserError(
                f"layers_pattern: {pattern!r} stands before no number of a layer; mixers: {listed(names)}"
            )
    for layer in [layers] if isinstance(layers, int) else layers or ():
        if not matching(names, ends(names), layers_to_transform=layer, layers_pattern=patterns):
            there = sorted({int(number) for name in names if (number := first_number(name))})
            raise UserError(
                f"layers_to_transform: {layer} is no layer with a mixer; layers: "
                f"{listed([str(number) for number in there], 12)}"
            )


def first_number(name: str) -> str | None:
    return next((part for part in name.split(".") if part.isdigit()), None)


def ends(names: list[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" ... ({len(names)})" if len(names) > most else "")
