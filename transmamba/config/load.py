"""YAML and `key=value` overrides -> checked frozen dataclasses; every mistake is reported at once.

The one place where outside values become typed ones. The loader knows no recipe by name: it is given the
dataclass to fill, and `Annotated[Any, Part(REGISTRY)]` marks the fields where a registered part is chosen.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import logging
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast

import pydantic
import yaml
from pydantic_core import CoreSchema, core_schema

from ..errors import ConfigError
from .file import apply_override, kind_of, read_yaml, show
from .problems import Keys, Problem, dotted, leave_out, lines_of
from .registry import Registry

T = TypeVar("T")
logger = logging.getLogger("transmamba.config")


class Part:
    """Marks a field that holds one part of `registry`: `teacher: Annotated[Any, Part(TEACHERS)]`.

    In YAML it is a mapping with `name` and the fields of the part registered so, or the bare name. A default
    is the part itself, as in `field(default_factory=lambda: LOSSES["kl"]())`: defaults are taken as they are.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._build)

    def config_class(self, value: Any) -> type:
        """The dataclass that `value` chooses. Raises ValueError saying what to write instead."""
        name = value.get("name") if isinstance(value, dict) else value
        if isinstance(name, str):
            part = cast(type, self.registry[name])
            if any(field.name == "name" for field in dataclasses.fields(part)):
                raise TypeError(f"{part.__qualname__}: a part's own field cannot be called 'name'")
            return part
        known = f"known: {', '.join(self.registry.names()) or 'none'}"
        if isinstance(value, dict) and "name" not in value:
            raise ValueError(f"has no name; write `name:` and the {self.registry.kind}'s name; {known}")
        raise ValueError(
            f"{show(name)} is {kind_of(name)}; write the name of a {self.registry.kind}; {known}"
        )

    def _build(self, value: Any) -> Any:
        # A ValidationError raised in here keeps its own locations below this one.
        part = self.config_class(value)
        options = (
            {key: item for key, item in value.items() if key != "name"} if isinstance(value, dict) else {}
        )
        return _adapter(part).validate_json(json.dumps(options))


@functools.cache
def _adapter(cls: type) -> pydantic.TypeAdapter[Any]:
    # Strict JSON mode is what a config means: lists fill tuples, text fills paths, 1 is no bool and true no
    # number. Pydantic takes `config` for a union but not for a dataclass; those inside the union inherit it.
    optional: Any = Union[cls, None]  # noqa: UP007
    return pydantic.TypeAdapter(optional, config=pydantic.ConfigDict(extra="forbid", strict=True))


def parse(cls: type[T], data: Mapping[str, Any], source: str) -> T:
    """`data` as a `cls`, a frozen keyword-only dataclass. Raises ConfigError naming every problem."""
    value, problems = _check(cls, data)
    if problems:
        raise ConfigError(source, problems)
    return cast(T, value)


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """The YAML file at `path`, changed by overrides such as `stages.0.lr=1e-3`, as a `cls`. Options that an
    override drops, since it names another part, are logged as a warning.

    Raises ConfigError: no such file, invalid YAML, a key given twice, an override that fits nowhere, and
    whatever `parse` finds.
    """
    source = str(path)
    data = read_yaml(Path(path))
    problems = []
    for override in overrides:
        try:
            for lost in apply_override(data, override):
                if os.environ.get("RANK", "0") == "0":
                    logger.warning("%s: %s", source, lost)
        except ValueError as error:
            problems.append(f"override {override}: {error}")
    required = [field.name for field in dataclasses.fields(cls) if field.default is field.default_factory]  # type: ignore[arg-type]
    if data and len(required) > 1 and not problems and not data.keys() & set(required):
        what = cls.__name__.lower()
        raise ConfigError(
            source, [f"it is no {what}, for it has none of {', '.join(required)}; write a {what}'s file"]
        )
    value, found = _check(cls, data)
    if problems or found:
        raise ConfigError(source, problems + found)
    return cast(T, value)


def dump(obj: Any) -> Any:
    """`obj` as plain values that YAML and JSON can hold; a part gets its `name` first. Inverse of `parse`."""
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = [field.name for field in dataclasses.fields(obj) if field.init]
        name = vars(type(obj)).get("name")
        head = {"name": name} if isinstance(name, str) and "name" not in fields else {}
        return head | {field: dump(getattr(obj, field)) for field in fields}
    if isinstance(obj, Mapping):
        return {str(key): dump(value) for key, value in obj.items()}
    if isinstance(obj, set | frozenset):
        return sorted(dump(item) for item in obj)
    if isinstance(obj, list | tuple):
        return [dump(item) for item in obj]
    if isinstance(obj, enum.Enum):
        return dump(obj.value)
    return str(obj) if isinstance(obj, Path) else obj


def save_yaml(obj: Any, path: str | Path, header: str = "") -> None:
    """Writes `dump(obj)` to `path`, whole or not at all, below `header` as a comment."""
    path = Path(path)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text = comment + yaml.safe_dump(dump(obj), sort_keys=False, allow_unicode=True, width=110)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


# --- checking ---


def _check(cls: type, data: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The object, or None and what is wrong. What YAML misread is repaired, in a copy."""
    plain = _plain(data)
    while True:
        try:
            return _adapter(cls).validate_json(json.dumps(plain)), []
        except pydantic.ValidationError as error:
            found = _located(cls, plain, error)
        # Every repair turns text into a number, 8.0 into 8 or false into text, so this ends.
        if sum(problem.repair(plain) for problem in found) == 0:
            needed = dict.fromkeys(str(problem.missing) for problem in found if problem.missing)
            rest = [problem for problem in found if not problem.missing]
            return None, lines_of(rest) + _hidden(cls, plain, found) + list(needed)


def _hidden(cls: type, plain: Any, found: Sequence[Problem]) -> list[str]:
    """Lines of what dataclasses refuse of their values where something else that is wrong in them keeps them
    from looking.

    Without that they look. What they say then may follow from its absence, so only what is about a key that
    is given counts.
    """
    rest, gone, lines = _plain(plain), set[Keys](), list[str]()
    while left := leave_out(rest, found):
        gone |= left
        try:
            _adapter(cls).validate_json(json.dumps(rest))
            break
        except pydantic.ValidationError as error:
            found = _located(cls, rest, error)
        for problem in found:
            for key, text in problem.refused:
                where = (*problem.path, key)
                given = isinstance(problem.value, dict) and key in problem.value
                if given and not any(_touch(where, path) for path in gone):
                    lines.append(f"{dotted(where)}: {text}")
    return list(dict.fromkeys(lines))


def _touch(a: Keys, b: Keys) -> bool:
    """Whether one lies within the other."""
    return a[: len(b)] == b[: len(a)]


def _located(cls: type, plain: Any, error: pydantic.ValidationError) -> list[Problem]:
    return [_locate(cls, plain, details) for details in error.errors(include_url=False)]


def _locate(root: type, data: Any, details: Any) -> Problem:
    """Follows pydantic's location through data and types, leaving out the tags it adds for unions."""
    path: list[str | int] = []
    value, hints = data, list(_members(root, data))
    owners: tuple[Any, ...] = ()
    for step in details["loc"]:
        inside = isinstance(value, dict) and step in value
        inside = inside or (isinstance(value, list) and isinstance(step, int) and step < len(value))
        if not inside and not (details["type"] == "missing" and step == details["loc"][-1]):
            continue
        owners = tuple(hint for hint in hints if dataclasses.is_dataclass(hint))
        value = value[step] if inside else None
        hints = [
            member for hint in hints for inner in _below(hint, step) for member in _members(inner, value)
        ]
        path.append(step)
    kinds = tuple(hint for hint in hints if dataclasses.is_dataclass(hint) and isinstance(hint, type))
    key = path[-1] if path else None
    other = tuple(_named_so(root, key)) if isinstance(key, str) and len(path) > 1 else ()
    return Problem(
        path=tuple(path), value=value, owners=owners, kinds=kinds, details=details, elsewhere=other
    )


def _named_so(root: type, key: str) -> Iterator[str]:
    """The paths of a configuration's keys of this name: its own, and those of its parts that are one class,
    of a list in its first item."""
    for name, hint in typing.get_type_hints(root, include_extras=True).items():
        if name == key:
            yield name
        found = list(_members(hint, None))
        lists = [inner for member in found for inner in typing.get_args(member) if inner is not Ellipsis]
        for place, members in ((name, found), (f"{name}.0", lists)):
            for member in members:
                if dataclasses.is_dataclass(member) and key in {f.name for f in dataclasses.fields(member)}:
                    yield f"{place}.{key}"


def _plain(value: Any) -> Any:
    """A copy that JSON can hold: keys and dates become the text they were written as."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _members(hint: Any, value: Any) -> Iterator[Any]:
    """The types that `hint` stands for: members of unions, the class that a part's name chooses."""
    if typing.get_origin(hint) is Annotated:
        part = next((item for item in hint.__metadata__ if isinstance(item, Part)), None)
        if part is None:
            yield from _members(hint.__origin__, value)
        else:
            with_name = value if isinstance(value, str | dict) else {}
            name = with_name.get("name") if isinstance(with_name, dict) else with_name
            if isinstance(name, str) and name in part.registry:
                yield part.registry[name]
    elif typing.get_origin(hint) in (Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _members(member, value)
    else:
        yield hint


def _below(hint: Any, step: str | int) -> list[Any]:
    """The types one step below `hint`: of a field, of an item of a list, of a value of a mapping."""
    if dataclasses.is_dataclass(hint):
        return [
            item for name, item in typing.get_type_hints(hint, include_extras=True).items() if name == step
        ]
    return [item for item in typing.get_args(hint) if item is not Ellipsis]
