"""What an adapter is made of, as PEFT saves it: `adapter_config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from peft import PeftConfig

from ..config.load import Part, dump, parse
from ..config.registry import METHODS
from ..errors import ConfigError, UserError
from .methods.method import Method
from .peft_type import member
from .saved import saved_shapes


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
    base:                sizes of what was adapted, written when it is: another base is refused by them

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
        parts = read(self.methods)
        self.methods = [dump(part) for part in parts]
        # no fields, so not saved: the methods themselves; by name of a module those that it takes; the shapes
        # of the tensors in the folder that this comes from; the base that was written there
        self._parts = parts
        self._targets: dict[str, tuple[Method, ...]] = {}
        self._saved: dict[str, tuple[int, ...]] | None = None
        self._trained_on = self.base

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
        config._saved = saved_shapes(Path(pretrained_model_name_or_path, subfolder or ""))
        return config


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
