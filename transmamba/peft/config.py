"""What an adapter is made of, as PEFT saves it: `adapter_config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from peft import PeftConfig

from ..config.load import Part, dump, parse
from ..config.registry import METHODS
from ..errors import ConfigError, UserError
from .methods.method import Method
from .peft_type import member
from .saved import Saved, is_empty, saved_tensors


@dataclass(frozen=True, kw_only=True)
class _Methods:
    methods: tuple[Annotated[Any, Part(METHODS)], ...]


@dataclass
class MambaPeftConfig(PeftConfig):
    """Methods of one adapter, all in one file: `MambaPeftConfig(methods=["lora_x", {"name": "bias"}])`.

    methods:             names, or mappings of a name and its options; what is left out is the papers'
    target_modules:      which mixers: a regular expression of whole names, or the ends of names; None: all
    exclude_modules:     likewise, those that are left alone
    layers_to_transform: numbers of the layers whose mixers are adapted; None: all
    layers_pattern:      what stands before the number of a layer in its name
    modules_to_save:     modules that are trained whole and saved with the adapter, such as a new head
    base:                what was adapted, written when it is: sizes, architecture, how many mixers, words and
                         classes; another base is refused by them

    Raises UserError for unknown methods, options and values, with the nearest name.
    """

    methods: list[Any] = field(default_factory=list)
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    base: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = member()
        refuse_types(self)
        refuse_broken(self)
        parts = read(self.methods)
        self.methods = [dump(part) for part in parts]
        # no fields, so not saved: the methods themselves; by name of a module those that it takes; what the
        # tensors are in the folder that this comes from; the base that was written there; that folder, where
        # it has none; whether a call that put it in loads its weights yet
        self._parts = parts
        self._targets: dict[str, tuple[Method, ...]] = {}
        self._saved: Mapping[str, Saved] | None = None
        self._trained_on = self.base
        self._empty: Path | None = None
        self._awaits = False

    @property
    def parts(self) -> tuple[Method, ...]:
        return self._parts

    def replace(self, old: Method, new: Method) -> None:
        """A method by another that says the same."""
        self._parts = tuple(new if part is old or part == old else part for part in self._parts)
        self.methods = [dump(part) for part in self._parts]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> MambaPeftConfig:
        """As PEFT's. Raises UserError for an adapter whose tensors are damaged, before a model is changed."""
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        # it may be read alone: refused where its weights are loaded, if it is of a model already
        config._empty = folder if config.base is not None and is_empty(folder) else None
        config._saved = saved_tensors(folder)
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """As PEFT's. Raises UserError for a file that is damaged."""
        try:
            values: dict[str, Any] = super().from_json_file(path_json_file, **kwargs)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path_json_file} is damaged ({error})") from None
        if not isinstance(values, dict):
            raise UserError(f"{path_json_file} is damaged (it is no mapping)")
        return values


NAMES = ("target_modules", "exclude_modules", "layers_pattern")


def refuse_types(config: MambaPeftConfig) -> None:
    """UserError for fields of other types than they have, as a damaged file gives them."""

    def of(value: Any, kind: type) -> bool:
        return isinstance(value, kind) and not isinstance(value, bool)

    def many(value: Any, kind: type) -> bool:
        return isinstance(value, list | tuple | set) and all(of(each, kind) for each in value)

    for key, value in vars(config).items():
        if value is None:
            continue
        if key in NAMES and not (of(value, str) or many(value, str)):
            raise UserError(f"{key}: {value!r}; write a regular expression, or a list of names")
        if key == "layers_to_transform" and not (of(value, int) or many(value, int)):
            raise UserError(f"{key}: {value!r}; write a number of a layer, or a list of them")
        if key == "modules_to_save" and not many(value, str):
            raise UserError(f"{key}: {value!r}; write a list of names")
        if key == "base" and not (isinstance(value, dict) and many(value.get("sizes"), list)):
            raise UserError(f"{key}: {value!r} says nothing of sizes: the configuration is damaged")


def refuse_broken(config: MambaPeftConfig) -> None:
    """UserError for what is read as a regular expression and is none."""
    for key in NAMES:
        value = getattr(config, key)
        names = key == "layers_pattern"  # of which a list's are expressions, too
        if names and config.layers_to_transform is None:  # then it is not read
            continue
        for one in [value] if isinstance(value, str) else (names and value) or ():
            try:
                re.compile(in_front(one) if names else one)
            except re.error as error:
                raise UserError(f"{key}: {one!r} is no regular expression ({error})") from None


def in_front(pattern: str) -> str:
    """The expression of a name whose layer's number stands behind this one."""
    return rf"(?:^|.*?\.){pattern}\.\d+\."


def read(methods: Any) -> tuple[Method, ...]:
    """The methods named, in the order given. Raises UserError, in one line, for what is wrong with them."""
    if isinstance(methods, str | dict):
        methods = [methods]
    if not isinstance(methods, list | tuple) or not methods:
        raise UserError(f"methods: {methods!r}; write a list of at least one; known: {', '.join(METHODS)}")
    plain = [dump(method) if isinstance(method, Method) else method for method in methods]
    try:
        parts = parse(_Methods, {"methods": plain}, "MambaPeftConfig").methods
    except ConfigError as error:
        raise UserError("; ".join(error.problems)) from None
    names = [part.name for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"methods: {twice!r} stands there twice; write it once")
    return parts
